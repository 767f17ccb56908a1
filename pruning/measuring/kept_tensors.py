"""Tensors that are worked out once and asked for again, in a bounded memory."""

from collections.abc import Callable, Hashable

import torch


class KeptTensors:
    """Tensors by keys, as many as fit a bound; those that came first stay.

    Every evaluation asks for the weights of all sub-layers in turn. Were those dropped that were used longest ago, they
    would be the very ones that are asked for next, and where not all fit, none would ever be found.

    Args:
        max_bytes: bound of what is kept. What goes beyond it is made anew each time.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[Hashable, torch.Tensor] = {}
        self.num_bytes = 0
        """Held now."""

    def get(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor of `key`; where it is not kept, what `make` gives, which is kept if it fits."""
        found = self._kept.get(key)
        if found is None:
            found = make()
            if self.num_bytes + found.nbytes <= self._max_bytes:
                self._kept[key] = found
                self.num_bytes += found.nbytes
        return found
