"""Answers in what chat templates render. The templates of the assets were written for these tests; of alternating user
and assistant messages, they make the text that the published ones make."""

from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from pruning.checkpoints.processor import process
from pruning.data.batches import BatchStream, make_batches
from pruning.data.chat_rendering import prompts_of, rendered_texts
from pruning.data.conversations import Conversation, Turn
from pruning.errors import CheckpointError, DatasetError
from tests.tiny_models import TEMPLATE, TEXT_TEMPLATE, tiny_processor, tiny_tokenizer

TEMPLATES = Path(__file__).parent.parent / "assets" / "chat_templates"
TALK = Conversation("talk", None, (Turn("what is it?", "red"), Turn("and it?", "blue seven")))
SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
THINK = "<think>\n\n</think>\n\n"


def chat_tokenizer(name: str, *, bos: str | None = None, eos: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return tokenizer


def llama_header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


LLAMA_TALK = (
    f"{llama_header('user')}what is it?<|eot_id|>{llama_header('assistant')}red<|eot_id|>"
    f"{llama_header('user')}and it?<|eot_id|>{llama_header('assistant')}blue seven<|eot_id|>"
)


@pytest.mark.parametrize(
    ("name", "bos", "eos", "text", "answers"),
    [
        (
            "qwen2.5",
            None,
            "<|im_end|>",
            f"{SYSTEM}<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
            "<|im_start|>user\nand it?<|im_end|>\n<|im_start|>assistant\nblue seven<|im_end|>\n",
            ["red<|im_end|>", "blue seven<|im_end|>"],
        ),
        ("llama-3", "<|bot|>", "<|eot_id|>", f"<|bot|>{LLAMA_TALK}", ["red<|eot_id|>", "blue seven<|eot_id|>"]),
        (
            "llama-3.2",
            "<|bot|>",
            "<|eot_id|>",
            f"<|bot|>{llama_header('system')}Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
            f"<|eot_id|>{LLAMA_TALK}",
            ["red<|eot_id|>", "blue seven<|eot_id|>"],
        ),
        (
            "mistral",
            "<s>",
            "</s>",
            "<s>[INST] what is it? [/INST] red</s>[INST] and it? [/INST] blue seven</s>",
            [" red</s>", " blue seven</s>"],
        ),
        (
            "phi-3",
            "<s>",
            "<|endoftext|>",
            "<|user|>\nwhat is it?<|end|>\n<|assistant|>\nred<|end|>\n"
            "<|user|>\nand it?<|end|>\n<|assistant|>\nblue seven<|end|>\n<|endoftext|>",
            ["red<|end|>", "blue seven<|end|>"],
        ),
        (
            "deepseek-r1",
            "<b>",
            "<e>",
            "<b><｜User｜>what is it?<｜Assistant｜>red<e><｜User｜>and it?<｜Assistant｜>blue seven<e>",
            ["red<e>", "blue seven<e>"],
        ),
    ],
)
def test_a_conversation_is_one_text(name: str, bos: str | None, eos: str | None, text: str, answers: list[str]) -> None:
    tokenizer = chat_tokenizer(name, bos=bos, eos=eos)
    (rendered,) = rendered_texts(TALK, tokenizer)
    assert rendered.text == text
    assert [text[start:stop] for start, stop in rendered.answers] == answers
    (batch,) = make_batches([TALK], tokenizer)
    ids = batch.inputs["input_ids"][0]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode(ids[x.start : x.stop]) for x in batch.spans] == answers


CLOCK = 'A{% set today = strftime_now("%Y-%m-%d") %}[{{ today }}|{{ strftime_now("%-d %B %y, %H:%M") }}]'


@pytest.mark.parametrize("start", ["", "\n", "  \n", "{# begin #}\n"])
def test_a_date_is_the_same_on_every_day(start: str) -> None:
    tokenizer, processor = tiny_tokenizer(), tiny_processor()
    tokenizer.chat_template, processor.chat_template = start + CLOCK + TEXT_TEMPLATE, start + CLOCK + TEMPLATE
    dated = "A[2024-07-26|26 July 24, 00:00]"
    for rendering in (tokenizer, processor):
        (rendered,) = rendered_texts(TALK, rendering)
        prompts = prompts_of(TALK, rendering)
        rendering.chat_template = start + "A" + (TEXT_TEMPLATE if rendering is tokenizer else TEMPLATE)
        (plain,) = rendered_texts(TALK, rendering)
        assert rendered.text == plain.text.replace("A", dated, 1)
        assert prompts == [prompt.replace("A", dated, 1) for prompt in prompts_of(TALK, rendering)]


def test_a_date_of_a_template_among_several() -> None:
    processor = tiny_processor()
    processor.chat_template = {"default": CLOCK + TEMPLATE, "other": "none"}
    assert rendered_texts(TALK, processor)[0].text.startswith("A[2024-07-26|")


def test_each_turn_is_a_text_where_history_is_rendered_differently() -> None:
    tokenizer = chat_tokenizer("qwen3", eos="<|im_end|>")
    asked = "<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\n"
    again = "red<|im_end|>\n<|im_start|>user\nand it?<|im_end|>\n<|im_start|>assistant\n"
    prompts = [asked + THINK, asked + again + THINK]
    assert prompts_of(TALK, tokenizer) == prompts
    texts = rendered_texts(TALK, tokenizer)
    assert [x.text for x in texts] == [f"{prompts[0]}red<|im_end|>\n", f"{prompts[1]}blue seven<|im_end|>\n"]
    assert [x.answers for x in texts] == [
        ((len(prompt), len(x.text) - 1),) for prompt, x in zip(prompts, texts, strict=True)
    ]
    single = Conversation("single", None, TALK.turns[:1])
    stream = BatchStream([TALK, single], tokenizer, batch_size=2, max_tokens=10**6)
    batches = list(stream)
    assert stream.num_rows == 3
    assert [len(batch.inputs["input_ids"]) for batch in batches] == [2, 1]  # a batch is bounded in rows
    found = [
        tokenizer.decode(batch.inputs["input_ids"][x.row, x.start : x.stop]) for batch in batches for x in batch.spans
    ]
    assert found == ["red<|im_end|>", "blue seven<|im_end|>", "red<|im_end|>"]


def test_a_prompt_that_no_answer_follows() -> None:
    tokenizer = chat_tokenizer("phi-3", eos="<|endoftext|>")
    tokenizer.chat_template = "{{ messages | length }}{{ 'go' if add_generation_prompt else messages[-1].content }}"
    with pytest.raises(DatasetError, match=r"where its prompt ends.*talk, turn 0: '1go' and '2red'"):
        make_batches([TALK], tokenizer)
    with pytest.raises(DatasetError, match="where its prompt ends"):  # before a batch is asked for
        BatchStream([TALK], tokenizer, max_tokens=99)


def seeing(template: str) -> ProcessorMixin:
    """LLaVA's processor, whose tokenizer writes BOS before a text as Llama's does."""
    processor = tiny_processor()
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    processor.chat_template = template
    return processor


def test_llava_1_5_leaves_bos_to_the_tokenizer(conversations: list[Conversation]) -> None:
    processor = seeing((TEMPLATES / "llava-1.5.jinja").read_text(encoding="utf-8"))
    assert prompts_of(conversations[0], processor)[0] == "USER: <image>\nwhat is it 0? ASSISTANT:"
    batch = make_batches(conversations, processor, batch_size=8)[0]
    ids = batch.inputs["input_ids"]
    assert (ids[:, 0] == 1).all()
    assert (ids == 1).sum() == len(conversations)
    found = [processor.tokenizer.decode(ids[x.row, x.start : x.stop]).strip() for x in batch.spans]
    assert found == [turn.answer for c in conversations for turn in c.turns]


@pytest.mark.parametrize("writes_bos", [False, True])
def test_tokens_are_those_of_transformers_own_chat(writes_bos: bool, conversations: list[Conversation]) -> None:
    template = TEMPLATE if not writes_bos else "<bos>" + TEMPLATE
    processor, conversation = seeing(template), conversations[0]
    picture = conversation.open_image()
    question = [{"type": "image", "image": picture}, {"type": "text", "text": conversation.turns[0].question}]
    expected = processor.apply_chat_template(
        [{"role": "user", "content": question}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )["input_ids"]
    found = process(processor, prompts_of(conversation, processor)[:1], [picture], padding_side="left")["input_ids"]
    assert torch.equal(found, expected)
    assert found[0].tolist().count(1) == 1


def test_a_language_models_template_writes_all_its_special_tokens() -> None:
    tokenizer = chat_tokenizer("phi-3", bos="<bos>", eos="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    (batch,) = make_batches([TALK], tokenizer)
    messages = [{**m, "content": m["content"][0]["text"]} for m in TALK.messages()]
    assert batch.inputs["input_ids"][0].tolist() == tokenizer.apply_chat_template(messages, return_dict=False)


def test_seconds_and_percent_signs_are_the_same_on_every_machine() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%%d|%s') }}." + TEXT_TEMPLATE
    assert rendered_texts(TALK, tokenizer)[0].text.startswith("%d|1721952000.")


def test_several_templates_need_a_default() -> None:
    processor = tiny_processor()
    processor.chat_template = {"rag": CLOCK + TEMPLATE, "tool": "none"}
    with pytest.raises(CheckpointError, match="named rag, tool"):
        rendered_texts(TALK, processor)


def test_an_answer_that_nothing_stands_before_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DatasetError, match="conversation talk: its text begins with the answer"):
        make_batches([TALK], tokenizer)
