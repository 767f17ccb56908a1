"""Solving what is kept anew, and rounding by GPTQ, on calibration conversations: for `lop apply`."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.data.conversations import Conversation, calibration_id

if TYPE_CHECKING:
    import torch

    from pruning.cutting.reconstruct_checkpoint import Reconstruction
    from pruning.cutting.reconstruction import SolvedSite
    from pruning.cutting.round_checkpoint import GptqRounding
    from pruning.data.batches import BatchStream


def reconstruction_on(
    folder: Path,
    conversations: Sequence[Conversation],
    *,
    on_batch: Callable[[int, int], None] | None = None,
    on_solved: "Callable[[tuple[SolvedSite, ...]], None] | None" = None,
) -> "Reconstruction":
    """How `prune_checkpoint` is to solve what it keeps of the checkpoint in `folder`.

    Raises:
        InputError: torch has no such device as LOP_TORCH_DEVICE says.
        CheckpointError, DatasetError: the checkpoint's processor or the conversations cannot be used.
    """
    from pruning.cutting.reconstruct_checkpoint import Reconstruction

    return Reconstruction(*_on_data(folder, conversations), on_batch=on_batch, on_solved=on_solved)


def rounding_on(
    folder: Path,
    conversations: Sequence[Conversation],
    *,
    on_batch: Callable[[int, int], None] | None = None,
    on_rounded: Callable[[Mapping[str, Mapping[str, Any]]], None] | None = None,
) -> "GptqRounding":
    """How `prune_checkpoint` is to round what a plan for the checkpoint in `folder` has in fewer bits.

    Raises as `reconstruction_on`.
    """
    from pruning.cutting.round_checkpoint import GptqRounding

    return GptqRounding(*_on_data(folder, conversations), on_batch=on_batch, on_rounded=on_rounded)


def _on_data(folder: Path, conversations: Sequence[Conversation]) -> "tuple[BatchStream, str, torch.device]":
    """The batches that both go through, what names them, and where."""
    from lop.workflows.compute import compute_device, warn_of_dtype
    from lop.workflows.measuring import streamed

    warn_of_dtype(folder)
    return streamed(folder, conversations), calibration_id(conversations), compute_device()


def summary_of(sites: "Sequence[SolvedSite]") -> dict[str, Any]:
    """For JSON: how many projections were solved, from how many tokens, and what they lose of their outputs, in the
    mean over them and on tokens that were held out."""
    if not sites:
        return {"projections": 0}
    finite = [site.damping for site in sites if math.isfinite(site.damping)]
    return {
        "projections": len(sites),
        "tokens": sites[0].tokens,
        "lost_output": sum(site.loss for site in sites) / len(sites),
        "lost_output_without": sum(site.plain_loss for site in sites) / len(sites),
        "damping": [min(finite), max(finite)] if finite else None,
        "left_as_cut": len(sites) - len(finite),
    }
