"""Where models run: on the GPU if torch sees one, else on the CPU; LOP_TORCH_DEVICE says otherwise."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def compute_device() -> "torch.device":
    """The device that models are measured on; raises InputError if torch has no such device."""
    import torch

    name = os.environ.get("LOP_TORCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            "LOP_TORCH_DEVICE must be a device that torch can use", values=name, remedy="Use cpu, or unset it"
        ) from error
    return device


def warn_of_adapter(folder: str | Path) -> None:
    """Say so if there are adapter files in the folder, which are not applied."""
    from lop.console import warn
    from pruning.adapters import adapter_note

    if note := adapter_note(folder):
        warn(note)


def load_for_compute(folder: str | Path) -> "PreTrainedModel":
    """The checkpoint's model, dense or pruned, on the device that it is to be measured on.

    Raises:
        CheckpointError: as `load_model`.
        InputError: torch has no such device.
    """
    from pruning.checkpoint import load_model

    device = compute_device()
    return load_model(folder).to(device)
