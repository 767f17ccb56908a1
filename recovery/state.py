"""What a training needs to go on after its process died: one safetensors file, replaced as a whole. No pickle.

Weights and the optimiser's moments are its tensors, everything else is JSON in its metadata. The best weights so far
lie beside it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from pruning.atomic_file import replace_file

STATE_META = "lop_recovery_2"
"""What the file's metadata have the progress under. The 2 is of the layout: since then AdamW's steps are counted for
each parameter."""
STATE_NAME = "state.safetensors"
_BEST = "best-{}.safetensors"
_KEY = "key"
_TEACHER = "teacher"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        num_steps: of the whole training.
        step: steps done.
        curve: [step, loss, learning rate] of each.
        evaluations: what each said, with its step.
        best_step: of the best weights so far; 0: the start.
        without_better: evaluations since the one of the lowest KL, the start's not counted.
        seconds: of training, over all attempts.
        tokens: that went through the student, padding not counted.
        stopped: why it ended early.
        num_processes: that it was begun with.
    """

    num_steps: int
    step: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    without_better: int = 0
    seconds: float = 0.0
    tokens: int = 0
    stopped: str | None = None
    is_over: bool = False
    num_processes: int = 1

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """From its JSON; raises TypeError, ValueError or KeyError if it is something else."""
        progress = cls(**document)
        progress.curve = [(int(step), loss, rate) for step, loss, rate in progress.curve]
        return progress


class StateFolder:
    """The files of one training; `teacher` is for what the dense model said of the batches."""

    def __init__(self, folder: Path, key: str, num_processes: int = 1) -> None:
        """Of the training with that key; what lies there of another one is removed.

        So is what the dense model said to another number of processes, whose shares of the batches are not those.
        """
        self._folder = folder
        self.teacher = folder / (_TEACHER if num_processes == 1 else f"{_TEACHER}-of-{num_processes}")
        marker = folder / _KEY
        if marker.is_file() and marker.read_text() == key:
            for path in folder.glob(f"{_TEACHER}*"):
                if path != self.teacher:
                    shutil.rmtree(path, ignore_errors=True)
            return
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        replace_file(marker, key.encode())

    def save(self, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
        """Raises OSError; then the file from before is still whole."""
        content = save(tensors, metadata={STATE_META: json.dumps(asdict(progress))})
        replace_file(self._folder / STATE_NAME, content)
        for path in self._folder.glob(_BEST.format("*")):
            if path.name != _BEST.format(progress.best_step):
                path.unlink()

    def load(self, on_note: Callable[[str], None]) -> tuple[Progress, dict[str, torch.Tensor]] | None:
        """What was saved of it; None if there is nothing that can be read, of which `on_note` is told."""
        path = self._folder / STATE_NAME
        try:
            with safe_open(path, framework="pt") as file:
                document: dict[str, Any] = json.loads((file.metadata() or {})[STATE_META])
            progress = Progress.of(document)
            best = self._folder / _BEST.format(progress.best_step)
            if not progress.best_step or best.is_file():
                return progress, load_file(path)
            why = f"{best.name} is gone"
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            why = f"damaged, or of another version of lop: {type(error).__name__} {error}"
        on_note(f"the training begins anew, as its state {path} cannot be gone on with ({why})")
        return None

    def save_best(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Beside those of the last saved state, which are needed until there is a newer one. Raises OSError."""
        replace_file(self._folder / _BEST.format(step), save(tensors))

    def load_best(self, step: int) -> dict[str, torch.Tensor]:
        """Raises OSError or SafetensorError if they are gone."""
        tensors: dict[str, torch.Tensor] = load_file(self._folder / _BEST.format(step))
        return tensors
