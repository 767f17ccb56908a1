"""Processes that train one model together, each on its share of every batch; here the one that is by itself.

What each of them does is the same but for its share: all have the whole model and its optimiser, take the same steps
and decide alike, since what they decide by is summed over all of them. Several are `recovery.several.Several`.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from pruning.arrays import FloatArray
from pruning.errors import InputError

T = TypeVar("T")


def num_launched() -> int:
    """How many processes a launcher (`torchrun`, `accelerate launch`) started together, this one included; else 1.

    Raises InputError if what it set is no number of processes.
    """
    together = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    if not all(os.environ.get(name) for name in together):
        return 1
    count = launched_number("WORLD_SIZE", at_least=1)
    launched_number("RANK", below=count)
    return count


def launched_number(name: str, *, at_least: int = 0, below: float = math.inf, default: int = 0) -> int:
    """What a launcher set the variable `name` to; `default` if it did not. Raises InputError if that cannot be."""
    text = os.environ.get(name) or str(default)
    if text.isdecimal() and at_least <= int(text) < below:
        return int(text)
    raise InputError(
        f"a launcher sets {name} to a number from {at_least}" + (f" to {below - 1}" if below < math.inf else ""),
        values=f"{name}={text}",
        remedy="Start the processes by torchrun or `accelerate launch`, or unset RANK, WORLD_SIZE and MASTER_ADDR",
    )


class Processes:
    """A process that trains by itself: sums over processes are its own values, and there is nobody to tell.

    Attributes:
        number: of this process, from 0, which is the main one: it alone writes, prints and draws.
        count: of all.
        local_count: of those on this machine.
        device: what it has to compute on; None: as it likes.
    """

    number = 0
    count = 1
    local_count = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this one writes, prints and draws."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share, in order: with those of the others all of `items`."""
        return items[self.number :: self.count]

    def summed(self, values: FloatArray) -> FloatArray:
        """Float64 values of any shape, which is the same in all processes, summed over these."""
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make every gradient the sum over processes; one that no process has stays None."""

    def together(self, make: Callable[[], T]) -> T:
        """What `make` gives in this process. If it fails in any, one of those raises and all of them end."""
        return make()

    def of_main(self, make: Callable[[], T]) -> T:
        """What `make`, of JSON types, gives in the main process, which alone calls it. If it fails, all end."""
        return make()

    def tensors_of_main(self, tensors: Mapping[str, torch.Tensor]) -> Iterable[tuple[str, torch.Tensor]]:
        """The main process's tensors by their names, one at a time; those that another process gives do not count."""
        return tensors.items()

    def local_first(self, make: Callable[[], T]) -> T:
        """What `make` gives: one process of each machine calls it before the others there do."""
        return make()

    def each(self, number: int) -> list[int]:
        """What every process says, in their order."""
        return [number]

    def check_same(self, what: str, digest: str) -> None:
        """Raises InputError if another process has another `digest`, a sha256, of `what`."""

    def of_share(self, folder: Path) -> Path:
        """Where in `folder` is what this process keeps for itself."""
        return folder


ALONE = Processes()
