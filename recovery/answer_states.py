"""What the dense model says of a part's answers, kept on disk, so that a run that was killed need not ask it again."""

from pathlib import Path
from shutil import disk_usage

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from recovery.tensor_file import replace_tensors

_MOST_BYTES = 2**30
"""Of one part. More takes a minute to write, and long trainings are on parts that are small beside their data."""

_SPARE_BYTES = 2**28
"""Left free on a disk."""


class AnswerStates:
    """The last hidden states [N, D] of the answers' tokens, one tensor a batch, in the file `path`.

    They are kept where they take `most_bytes` at most and the disk has the room; `reserved_bytes` of it others need.
    """

    def __init__(self, path: Path, *, most_bytes: int = _MOST_BYTES, reserved_bytes: int = 0) -> None:
        self._path, self._most_bytes, self._reserved_bytes = path, min(most_bytes, _MOST_BYTES), reserved_bytes

    def read(self, num_batches: int, device: torch.device) -> list[torch.Tensor] | None:
        """Those of all batches; None if they are not there."""
        try:
            found = load_file(self._path)
            # Copies, as sums may come out otherwise where memory begins elsewhere.
            return [found[str(index)].to(device, copy=True) for index in range(num_batches)]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, states: list[torch.Tensor]) -> None:
        """Keep them, if they can be kept."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in states)
        if size > self._most_bytes:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if size <= disk_usage(self._path.parent).free - self._reserved_bytes - _SPARE_BYTES:
                replace_tensors(self._path, {str(index): tensor for index, tensor in enumerate(states)})
        except OSError:
            return

    @property
    def num_bytes(self) -> int:
        """Of the file; 0 if there is none."""
        return self._path.stat().st_size if self._path.is_file() else 0
