"""Where models run, and in what type: on the GPU if torch sees one, else on the CPU; LOP_TORCH_DEVICE says otherwise,
and, where that is silent, `accelerate launch --cpu`.

Checkpoints of the hub are bfloat16 or float16, which most CPUs multiply many times more slowly than float32. There a
model is loaded in float32 if that takes at most `FITTING_SHARE` of the memory that is free, and otherwise computed in
float32 a decoder layer at a time (`pruning.forward.wide_passes`). Either way the numbers are those of a float32 copy.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pruning.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FITTING_SHARE: Final = 0.7
"""Of the free memory that a model in float32 may take: activations and what is kept between evaluations come on top."""


def compute_device() -> "torch.device":
    """The device that models are measured on; raises InputError if torch has no such device."""
    import torch

    device = wanted_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _no_device(str(device)) from error
    return device


def wanted_device() -> "torch.device":
    """The same without a look whether it can be used, which takes memory of it; raises InputError if there is no such
    kind of device."""
    import torch

    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes", "y", "on", "t")
    usual = "cuda" if torch.cuda.is_available() and not wants_cpu else "cpu"
    name = os.environ.get("LOP_TORCH_DEVICE") or usual
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise _no_device(name) from error


def _no_device(name: str) -> InputError:
    return InputError(
        "LOP_TORCH_DEVICE must be a device that torch can use", values=name, remedy="Use cpu, or unset it"
    )


def warn_of_adapter(folder: str | Path) -> None:
    """Say so if there are adapter files in the folder, which are not applied."""
    from lop.console.console import warn
    from pruning.checkpoints.adapters import adapter_note

    if note := adapter_note(folder):
        warn(note)


def load_for_compute(folder: str | Path) -> "PreTrainedModel":
    """The checkpoint's model, dense or pruned, on the device that it is to be measured on.

    Its weights have the values of the files, in float32 where the device is slow with their type and they fit so; those
    in few bits are unpacked. A warning says if config.json names another type than the files have.

    Raises:
        CheckpointError: as `load_model`.
        InputError: torch has no such device.
    """
    from pruning.checkpoints.anatomy_reader import load_config
    from pruning.checkpoints.headers import stored_tensors
    from pruning.checkpoints.loading import load_model
    from pruning.checkpoints.stored_dtype import stored_dtype
    from pruning.checkpoints.unpacking import unpack_weights
    from pruning.forward.compute_dtype import compute_dtype
    from pruning.forward.free_memory import free_memory_bytes

    def fits(num_values: int) -> bool:
        return num_values * wide.itemsize <= FITTING_SHARE * free_memory_bytes()

    device = compute_device()
    warn_of_dtype(folder)
    dtype = stored_dtype(folder)
    wide = compute_dtype(dtype, device)
    if getattr(load_config(Path(folder)), "quantization_config", None) is None:
        num_values = sum(x.num_bytes // dtype.itemsize for x in stored_tensors(Path(folder)).values())
        return load_model(folder, dtype=wide if fits(num_values) else dtype).to(device)
    # The values of packed weights are those that they have in their own dtype: so they were scored, so servers unpack.
    model = load_model(folder, dtype=dtype)
    unpack_weights(model)
    return (model.to(wide) if fits(model.num_parameters()) else model).to(device)


def warn_of_dtype(folder: str | Path) -> None:
    """Say if config.json names another type than the files have; raises CheckpointError if the folder is damaged."""
    from lop.console.console import warn
    from pruning.checkpoints.stored_dtype import disagreement

    if (text := disagreement(folder)) is not None:
        warn(text)
