"""The first answer tokens of rows, and what a model says at them."""

from dataclasses import replace
from pathlib import Path

import torch

from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.answer_beginnings import first_answer_tokens
from pruning.data.batches import AnswerSpan, Batch, make_batches
from pruning.data.conversations import Conversation


def test_the_first_tokens_of_each_row_count_and_what_follows_is_padding() -> None:
    """Answers of two and three tokens, and of one and four: of three tokens a row, one and two of the later ones."""
    ids = torch.arange(20).reshape(2, 10)
    spans = (AnswerSpan(0, 2, 4), AnswerSpan(0, 6, 9), AnswerSpan(1, 1, 2), AnswerSpan(1, 3, 7))
    pictures = torch.zeros(2, 3, 10, 10)
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}, spans)
    found = first_answer_tokens(batch, 3)
    assert found.spans == (AnswerSpan(0, 2, 4), AnswerSpan(0, 6, 7), AnswerSpan(1, 1, 2), AnswerSpan(1, 3, 5))
    assert found.inputs["input_ids"].tolist() == [list(range(7)), list(range(10, 17))]
    assert found.inputs["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert found.inputs["pixel_values"] is pictures
    assert batch.inputs["attention_mask"].all()
    assert first_answer_tokens(batch, 1).spans == (AnswerSpan(0, 2, 3), AnswerSpan(1, 1, 2))
    whole = first_answer_tokens(batch, 5)
    assert whole.spans == spans
    assert whole.inputs["input_ids"].shape == (2, 9)


def test_a_model_says_the_same_at_them(checkpoint: Path, conversations: list[Conversation]) -> None:
    longer = [replace(x, turns=x.turns * (1 + index % 2)) for index, x in enumerate(conversations)]
    (batch,) = make_batches(longer, load_processor(checkpoint))
    model, found = load_model(checkpoint), first_answer_tokens(batch, 2)
    assert found.inputs["input_ids"].shape[1] < batch.inputs["input_ids"].shape[1]
    with torch.no_grad():
        whole, short = (model(**x.inputs).logits for x in (batch, found))
    for span in found.spans:
        at = slice(span.start - 1, span.stop - 1)
        torch.testing.assert_close(short[span.row, at], whole[span.row, at], rtol=1e-4, atol=1e-5)
