"""The training loss that importance is measured by: cross-entropy of the answer tokens."""

from collections.abc import Sequence

import torch
from torch import nn

from pruning.anatomy.decoder_view import DecoderView
from pruning.data.batches import Batch


def num_answer_tokens(batches: Sequence[Batch]) -> int:
    """Answer tokens of all batches."""
    return sum(span.stop - span.start for batch in batches for span in batch.spans)


def summed_answer_loss(view: DecoderView, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats, summed over the batch's answer tokens, in float32.

    Args:
        view: whose logits they are.
        hidden: [B, T, D] final hidden states. Only the positions that predict answers go through the head.
        batch: where the answers are, and their tokens.
    """
    predicting = torch.cat([hidden[span.row, span.start - 1 : span.stop - 1] for span in batch.spans])
    targets = torch.cat([batch.inputs["input_ids"][span.row, span.start : span.stop] for span in batch.spans])
    return nn.functional.cross_entropy(view.logits(predicting), targets.to(hidden.device), reduction="sum")
