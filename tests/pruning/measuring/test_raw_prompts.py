"""Prompts as a harness writes them: with BOS where the tokenizer writes it, spaces kept, batches as single prompts."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pruning.errors import DatasetError
from pruning.measuring.generation import generate_tokens
from pruning.measuring.likelihood import encode_pair
from pruning.measuring.raw_prompts import continue_texts, raw_tokens
from tests.tiny_models import tiny_model
from tests.tiny_models.processor import tiny_tokenizer

BOS = 1
TEXTS = ["what is it?", "red", "blue seven three red", " it"]


def bos_writing_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's and Gemma's: BOS before every text."""
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return tokenizer


def test_bos_stands_where_the_tokenizer_writes_it_and_once() -> None:
    plain, writing = tiny_tokenizer(), bos_writing_tokenizer()
    ids = raw_tokens("what is it?", plain)
    assert BOS not in ids
    assert raw_tokens("what is it?", writing) == raw_tokens("<bos>what is it?", writing) == [BOS, *ids]
    assert encode_pair("what ", "is it?", plain) == (raw_tokens("what", plain), raw_tokens(" is it?", plain))
    assert encode_pair("what ", "is it?", writing) == (raw_tokens("what", writing), raw_tokens(" is it?", plain))


@pytest.mark.parametrize("writes_bos", [False, True])
def test_texts_go_on_as_each_does_alone(writes_bos: bool) -> None:
    model = tiny_model("llama")
    tokenizer = bos_writing_tokenizer() if writes_bos else tiny_tokenizer()
    assert tokenizer.chat_template is None
    found = continue_texts(model, tokenizer, TEXTS, max_new_tokens=6, batch_size=3)
    for text, said in zip(TEXTS, found, strict=True):
        ids = torch.tensor([raw_tokens(text, tokenizer)])
        (row,) = generate_tokens(model, {"input_ids": ids}, max_new_tokens=6)
        assert said == tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_spaces_are_part_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    says = torch.tensor(tokenizer(" it red ", add_special_tokens=False)["input_ids"])
    monkeypatch.setattr("pruning.measuring.raw_prompts.generate_tokens", lambda *_args, **_kw: [says])
    assert continue_texts(tiny_model("llama"), tokenizer, ["what"], max_new_tokens=6) == [" it red "]


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DatasetError, match="must fit the model's positions"):
        continue_texts(tiny_model("llama"), tiny_tokenizer(), ["red"], max_new_tokens=100_000)
