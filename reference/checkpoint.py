"""Checkpoints of a build: tensors in safetensors, everything else in JSON. Never pickle.

A checkpoint is written to a temporary folder and renamed, so a killed build leaves either the old one or the new.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer


def _optimizer_tensors(name: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, keyed `name/parameter number/buffer`."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{name}/{index}/{key}": torch.as_tensor(value).clone().contiguous()
        for index, buffers in state.items()
        for key, value in buffers.items()
    }


def _restore_optimizer(name: str, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        owner, index, buffer = key.split("/")
        if owner == name:
            state.setdefault(int(index), {})[buffer] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path, module: nn.Module, optimizers: dict[str, Optimizer], progress: dict[str, Any]
) -> None:
    """Write weights, optimizer states and progress, replacing an older checkpoint in `folder`."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {key: value.detach().clone().contiguous() for key, value in module.named_parameters()}
    save_file(weights, temporary / "weights.safetensors")
    states: dict[str, Tensor] = {}
    for name, optimizer in optimizers.items():
        states |= _optimizer_tensors(name, optimizer)
    save_file(states, temporary / "optimizers.safetensors")
    (temporary / "progress.json").write_text(json.dumps(progress, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def load_checkpoint(folder: Path, module: nn.Module, optimizers: dict[str, Optimizer]) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote and return its progress, or None where there is no checkpoint."""
    if not (folder / "progress.json").exists():
        return None
    weights = load_file(folder / "weights.safetensors")
    parameters = dict(module.named_parameters())
    if weights.keys() != parameters.keys():
        raise ValueError(
            f"the checkpoint in {folder} is of another model: it has {len(weights)} tensors, the model "
            f"{len(parameters)}; build with --fresh to start anew"
        )
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(weights[key])
    states = load_file(folder / "optimizers.safetensors")
    for name, optimizer in optimizers.items():
        _restore_optimizer(name, optimizer, states)
    progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return progress
