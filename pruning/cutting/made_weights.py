"""Weights that were worked out anew, before they are kept."""

import torch

from pruning.errors import CheckpointError


def check_made_weight(tensor: torch.Tensor, name: str) -> None:
    """Raises CheckpointError if a value of `tensor`, in the checkpoint's dtype, is not finite there; `name` is said."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise CheckpointError(
            "weights that are made anew must fit the dtype of the checkpoint",
            values=f"{name} is not finite in {str(tensor.dtype).removeprefix('torch.')}",
            remedy="Convert the checkpoint to bfloat16 or float32",
        )
