"""Batches of which only the beginnings of answers count: what a loss is wanted of where whole answers cost too much."""

from dataclasses import replace
from typing import TYPE_CHECKING

from pruning.data.batches import AnswerSpan, Batch

if TYPE_CHECKING:
    import torch


def first_answer_tokens(batch: Batch, num_tokens: int) -> Batch:
    """The batch with the first `num_tokens` (1 or more) answer tokens of each row, and nothing behind them.

    What follows a row's last one is padding, and T no longer than the longest row is then. Decoders look back alone, so
    what is said at the tokens that count is what it was.
    """
    ids: torch.Tensor = batch.inputs["input_ids"]
    left, ends, spans = [num_tokens] * len(ids), [0] * len(ids), []
    for span in batch.spans:
        count = min(left[span.row], span.stop - span.start)
        if count:
            ends[span.row] = span.start + count
            spans.append(AnswerSpan(span.row, span.start, ends[span.row]))
            left[span.row] -= count
    # Of every token there are ids, the mask and, in some families, types. Pictures have other shapes.
    inputs = {name: x[:, : max(ends)] if x.shape == ids.shape else x for name, x in batch.inputs.items()}
    mask = inputs["attention_mask"].clone()
    for row, end in enumerate(ends):
        mask[row, end:] = 0
    return replace(batch, inputs={**inputs, "attention_mask": mask}, spans=tuple(spans))
