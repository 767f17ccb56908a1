"""Training states on disk: tensors in safetensors, numbers in JSON; the JSON file is replaced last and names the other.

Killed at any moment, the folder holds one complete state: the newest that was finished.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pruning.atomic_file import replace_file
from pruning.errors import CheckpointError

STATE_FILE = "training.json"


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands: steps done, tensors by name, and numbers."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]


class TrainingCheckpoint:
    """One training's folder. `run_key` names the training: the settings, the model and the samples."""

    def __init__(self, folder: Path, run_key: str) -> None:
        self.folder, self.run_key = folder, run_key

    def save(self, state: TrainingState) -> None:
        """Raises CheckpointError if the folder cannot be written."""
        name = f"training-{state.step}.safetensors"
        document = {"run_key": self.run_key, "step": state.step, "tensors": name, "numbers": state.numbers}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            contiguous = {key: tensor.detach().contiguous() for key, tensor in state.tensors.items()}
            replace_file(self.folder / name, save_tensors(contiguous))
            replace_file(self.folder / STATE_FILE, json.dumps(document, indent=1).encode())
            for old in self.folder.glob("training-*.safetensors"):
                if old.name != name:
                    old.unlink()
        except OSError as error:
            raise CheckpointError(
                "a checkpoint folder must be writable",
                values=f"{self.folder}: {error.strerror}",
                remedy="Choose another folder",
            ) from error

    def load(self) -> TrainingState | None:
        """The state to go on from, or None. Raises CheckpointError if it is torn or another training's."""
        path = self.folder / STATE_FILE
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_bytes())
            found = document["run_key"]
            if found == self.run_key:
                tensors = load_tensors((self.folder / document["tensors"]).read_bytes())
                return TrainingState(document["step"], tensors, document["numbers"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                "a training state must be complete",
                values=f"{path}: {error}",
                remedy="Delete the folder and train from the start",
            ) from error
        raise CheckpointError(
            "a training goes on only with the same settings, model and samples",
            values=f"{path} belongs to training {found[:12]}, this is {self.run_key[:12]}",
            remedy="Delete the folder, or choose another",
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Moments and step counts under names that start with `prefix`."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{prefix}{index}.{name}": tensor for index, slot in state.items() for name, tensor in slot.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """The inverse of `optimizer_tensors`."""
    slots: dict[int, dict[str, Any]] = {}
    for name, tensor in with_prefix(tensors, prefix).items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
