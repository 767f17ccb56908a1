"""Log-likelihoods of continuations against a plain pass over the whole text, a pair at a time."""

import pytest
import torch

from pruning.errors import DatasetError
from pruning.measuring.likelihood import encode_pair, log_likelihoods
from tests.tiny_models import tiny_model
from tests.tiny_models.processor import tiny_tokenizer

PAIRS = [("what is it?", " red"), ("what ", "is it? seven three"), ("", "blue")]


@torch.inference_mode()
def test_scores_are_those_of_a_plain_pass() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    found = log_likelihoods(model, tokenizer, PAIRS, batch_size=3)
    for (context, continuation), (score, greedy) in zip(PAIRS, found, strict=True):
        whole = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        first = len(tokenizer(context.rstrip(), add_special_tokens=False)["input_ids"])
        ids = torch.tensor([whole if context else [1, *whole]])
        start = first if context else 1
        told = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        wanted = [(place, int(ids[0, place])) for place in range(start, ids.shape[1])]
        assert score == pytest.approx(sum(float(told[place - 1, token]) for place, token in wanted), abs=1e-4)
        assert greedy == all(int(told[place - 1].argmax()) == token for place, token in wanted)


def test_the_greedy_continuation_is_said_to_be_greedy() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    pairs = []
    for context in ("red", "blue", "yes", "what", "seven three", "how many"):
        before, _ = encode_pair(context, " red", tokenizer)
        best = int(model(input_ids=torch.tensor([before])).logits[0, -1].argmax())
        pair = (context, tokenizer.decode([best]))
        if encode_pair(*pair, tokenizer) == (before, [best]):  # half a character or a merge is another text
            pairs.append(pair)
    assert pairs
    assert [greedy for _, greedy in log_likelihoods(model, tokenizer, pairs)] == [True] * len(pairs)
    longer = [(context, f"{text} red seven three") for context, text in pairs]
    assert [greedy for _, greedy in log_likelihoods(model, tokenizer, longer)] == [False] * len(pairs)


def test_spaces_between_belong_to_the_continuation() -> None:
    tokenizer = tiny_tokenizer()
    assert encode_pair("what ", "is it?", tokenizer) == encode_pair("what", " is it?", tokenizer)


def test_an_empty_continuation_is_refused() -> None:
    with pytest.raises(DatasetError, match="must have tokens"):
        log_likelihoods(tiny_model("llama"), tiny_tokenizer(), [("what", "")])
