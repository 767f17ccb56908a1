"""Calibration conversations as an evaluator runs them: recorded once, packed into rows, with their answer tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pruning.anatomy.decoder_view import DecoderView
from pruning.data.batches import Batch
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.forward.layerwise import LayerCalls, record_layer_calls
from pruning.forward.packing import PackedCalls, Place, pack, shared_out
from pruning.forward.wide_passes import wide_passes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AnswerRow:
    """Sequences that go through the decoder together, and their answers, flattened to N tokens.

    Attributes:
        calls: what the layers are called with.
        positions: [N] where in the row the hidden states that predict each token stand.
        targets: [N] token ids.
        answer: [N] which answer of the row each token belongs to.
        num_answers: answers in the row.
        conversation: [N] which conversation each token belongs to, as `Batch.conversations` numbers them.
        dense_hidden: [N, D] after the final norm, as the dense model computed them in padded batches.
    """

    calls: PackedCalls | LayerCalls
    positions: torch.Tensor
    targets: torch.Tensor
    answer: torch.Tensor
    num_answers: int
    conversation: torch.Tensor
    dense_hidden: torch.Tensor


@torch.inference_mode()
def record_batches(model: "PreTrainedModel", view: DecoderView, batches: Sequence[Batch]) -> list[LayerCalls]:
    """How the dense model calls its layers on each batch; vision tower and projector run here, for all configurations.

    Raises UnsupportedModelError if layers do not simply follow one another.
    """
    with wide_passes(model):
        return [record_layer_calls(view, decoder_inputs(model, [batch])[0]) for batch in batches]


@torch.inference_mode()
def packed_rows(view: DecoderView, batches: Sequence[Batch], recorded: Sequence[LayerCalls]) -> list[AnswerRow]:
    """The sequences of all batches in rows of real tokens (see `pruning.forward.packing`), for "sdpa" attention.

    A sequence ends where its last answer token is predicted: what follows is of no use.
    """
    lengths: dict[tuple[int, int], int] = {}
    for index, batch in enumerate(batches):
        for span in batch.spans:
            key = index, span.row
            lengths[key] = max(lengths.get(key, 0), span.stop - 1)
    rows = []
    for places in shared_out([Place(*key, length) for key, length in lengths.items()]):
        calls = pack(view, recorded, places)
        rows.append(_answers(calls, calls.starts, batches, recorded))
    return rows


@torch.inference_mode()
def padded_rows(batches: Sequence[Batch], recorded: Sequence[LayerCalls]) -> list[AnswerRow]:
    """Each batch as it was recorded."""
    rows = []
    for index, calls in enumerate(recorded):
        num_rows, num_tokens = calls.hidden.shape[:2]
        starts = {(index, row): row * num_tokens for row in range(num_rows)}
        rows.append(_answers(calls, starts, batches, recorded))
    return rows


def _answers(
    calls: PackedCalls | LayerCalls,
    starts: dict[tuple[int, int], int],
    batches: Sequence[Batch],
    recorded: Sequence[LayerCalls],
) -> AnswerRow:
    """The row of `calls` with the answers of its sequences; `starts` is where each, (batch, row), begins in the row."""
    positions: list[int] = []
    answer: list[int] = []
    conversation: list[int] = []
    targets, dense = [], []
    num_answers = 0
    for index in sorted({index for index, _ in starts}):
        batch = batches[index]
        for span in batch.spans:
            start = starts.get((index, span.row))
            if start is None:
                continue
            predicting = slice(span.start - 1, span.stop - 1)
            positions += range(start + predicting.start, start + predicting.stop)
            targets.append(batch.inputs["input_ids"][span.row, span.start : span.stop])
            dense.append(recorded[index].last_hidden[span.row, predicting])
            answer += [num_answers] * (span.stop - span.start)
            owner = batch.conversations[span.row] if batch.conversations else 0  # told apart by nobody, then
            conversation += [owner] * (span.stop - span.start)
            num_answers += 1
    device = calls.hidden.device
    return AnswerRow(
        calls,
        torch.tensor(positions, device=device),
        torch.cat(targets).to(device),
        torch.tensor(answer, device=device),
        num_answers,
        torch.tensor(conversation, device=device),
        torch.cat(dense),
    )
