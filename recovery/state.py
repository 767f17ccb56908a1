"""What a training needs to go on after its process died: one safetensors file, replaced as a whole. No pickle.

Weights and the optimiser's moments are its tensors, everything else is JSON in its metadata. The best weights so far
lie beside it, and those that were the best when it was written.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pruning.atomic_file import replace_file
from pruning.checkpoints.file_errors import writing
from pruning.cutting.streaming.place import check_room
from recovery.tensor_file import replace_tensors

STATE_META = "lop_recovery_2"
"""What the file's metadata have the progress under. The 2 is of the layout: since then AdamW's steps are counted for
each parameter."""
STATE_NAME = "state.safetensors"
_BEST = "best-{}.safetensors"
_KEY = "key"
_TEACHER = "teacher"
_WHAT = "training's state"

_STATE_COPIES = 3
"""Of what is trained, in a state: the weights, and AdamW's two moments of each."""
_MOST_COPIES = 2 * _STATE_COPIES + 2
"""Of what is trained, at once: a state and the next one, the best weights of each."""
_LAST_COPIES = _STATE_COPIES + 1
"""Beside the output: the last state and the best weights."""
_REST_BYTES = 2**22
"""Curves, scores and headers."""


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


def state_bytes(trained_bytes: int) -> int:
    """What states take on a disk, at most, where so many bytes of weights are trained."""
    return _MOST_COPIES * trained_bytes + _REST_BYTES


def check_state_room(folder: Path, trained_bytes: int, output_bytes: int = 0) -> None:
    """Check that the disk has room for states in `folder`, and beside the last one for an output of so many bytes.

    Raises CheckpointError.
    """
    own = [folder / STATE_NAME, *folder.glob(_BEST.format("*"))]
    kept = sum(path.stat().st_size for path in own if path.is_file())
    last = _LAST_COPIES * trained_bytes + _REST_BYTES + output_bytes
    what = f"{_WHAT} and the output" if output_bytes else _WHAT
    check_room({folder: max(state_bytes(trained_bytes), last) - kept}, what=what)


class StateFolder:
    """The files of one training; `teacher` is for what the dense model said of the batches."""

    def __init__(self, folder: Path, key: str, num_processes: int = 1) -> None:
        """Of the training with that key; what lies there of another one is removed.

        So is what the dense model said to another number of processes, whose shares of the batches are not those.

        Raises CheckpointError if the folder cannot be written; so do `save` and `save_best`.
        """
        self._folder = folder
        self._kept_best = 0
        self.teacher = folder / (_TEACHER if num_processes == 1 else f"{_TEACHER}-of-{num_processes}")
        marker = folder / _KEY
        if marker.is_file() and marker.read_text() == key:
            for path in folder.glob(".*.partial"):  # a process died while it wrote that
                path.unlink(missing_ok=True)
            for path in folder.glob(f"{_TEACHER}*"):
                if path != self.teacher:
                    shutil.rmtree(path, ignore_errors=True)
            return
        with writing(folder, what=_WHAT):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            replace_file(marker, key.encode())

    def save(self, progress: Progress, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises CheckpointError; then the file from before is still whole."""
        with writing(self._folder, what=_WHAT, draft=self._folder):
            replace_tensors(self._folder / STATE_NAME, tensors, {STATE_META: json.dumps(asdict(progress))})
            self._kept_best = progress.best_step
            self._remove_best()

    def load(self, on_note: Callable[[str], None]) -> tuple[Progress, dict[str, torch.Tensor]] | None:
        """What was saved of it; None if there is nothing that can be read, of which `on_note` is told."""
        path = self._folder / STATE_NAME
        try:
            with safe_open(path, framework="pt") as file:
                document: dict[str, Any] = json.loads((file.metadata() or {})[STATE_META])
            progress = Progress.of(document)
            best = self._folder / _BEST.format(progress.best_step)
            if not progress.best_step or best.is_file():
                tensors: dict[str, torch.Tensor] = load_file(path)
                self._kept_best = progress.best_step
                return progress, tensors
            why = f"{best.name} is gone"
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            why = f"damaged, or of another version of lop: {type(error).__name__} {error}"
        on_note(f"the training begins anew, as its state {path} cannot be gone on with ({why})")
        return None

    def save_best(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Beside those of the last saved state, which are needed until there is a newer one. Raises CheckpointError."""
        with writing(self._folder, what=_WHAT, draft=self._folder):
            self._remove_best()
            replace_tensors(self._folder / _BEST.format(step), tensors)

    def _remove_best(self) -> None:
        """All but those of the last saved state, which alone is gone on with."""
        for path in self._folder.glob(_BEST.format("*")):
            if path.name != _BEST.format(self._kept_best):
                path.unlink()

    def load_best(self, step: int) -> dict[str, torch.Tensor]:
        """Raises OSError or SafetensorError if they are gone."""
        tensors: dict[str, torch.Tensor] = load_file(self._folder / _BEST.format(step))
        return tensors
