"""Conversations with and without images in one batch, through processors that count the images of each."""

from collections.abc import Callable

import pytest
import torch
from transformers import Gemma3Processor, Idefics3Processor, LlavaNextProcessor, ProcessorMixin
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from tests.tiny_models import TEMPLATE, tiny_processor, tiny_tokenizer

SIZE = {"height": 32, "width": 32}


def gemma3() -> ProcessorMixin:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_image>", "<end_of_image>", "<soft>"]})
    tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token = "<start_of_image>", "<end_of_image>", "<soft>"
    tokenizer.boi_token_id = tokenizer.convert_tokens_to_ids("<start_of_image>")
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<soft>")
    template = TEMPLATE.replace("<image>", "<start_of_image>")
    return Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE), tokenizer, chat_template=template, image_seq_length=4)


def idefics3() -> ProcessorMixin:
    tokenizer = tiny_tokenizer()
    more = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE)


def llava_next() -> ProcessorMixin:
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE, image_grid_pinpoints=[[32, 32]])
    return LlavaNextProcessor(
        images,
        tiny_tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.mark.parametrize("build", [tiny_processor, llava_next, gemma3, idefics3])
def test_answers_are_found_beside_the_images(
    build: Callable[[], ProcessorMixin], conversations: list[Conversation]
) -> None:
    processor = build()
    shuffled = [conversations[-1], *conversations[:-1]]  # one without an image comes first
    (batch,) = make_batches(shuffled, processor, batch_size=8)
    ids = batch.inputs["input_ids"]
    found = [processor.tokenizer.decode(ids[span.row, span.start : span.stop]).strip() for span in batch.spans]
    assert found == [f"{turn.answer}<eos>" for c in shuffled for turn in c.turns]
    alone = [make_batches([c], processor)[0].inputs for c in shuffled]
    pictures = torch.cat([x["pixel_values"].flatten(0, -4) for x in alone if "pixel_values" in x])
    together = batch.inputs["pixel_values"].flatten(0, -4)
    assert torch.equal(together[together.flatten(1).any(dim=1)], pictures)
    for row, inputs in enumerate(alone):
        length = inputs["input_ids"].shape[1]
        assert torch.equal(ids[row, :length], inputs["input_ids"][0])
        assert int(batch.inputs["attention_mask"][row].sum()) == length
