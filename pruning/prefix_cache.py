"""Hidden states of layer prefixes that configurations share, within a bound of bytes: least recently used out."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

DEFAULT_CACHE_BYTES = 512 * 2**20
"""Hidden states that an evaluator keeps, over all batches. It holds less if there is less to keep."""


class PrefixCache:
    """The input of layer l, [B, T, D], of one batch, by the widths of layers 0..l-1.

    Keeps copies, in buffers that are made once and then reused: allocating and freeing states in turn with activations
    of ever other sizes leaves holes in the heap that add up to more than the bound. What `longest` gives out may be
    overwritten by the next `put`. Not thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._states: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """What is held now; never over the bound."""
        return self._bytes

    def longest(self, widths: Sequence[int]) -> tuple[int, torch.Tensor | None]:
        """The deepest known l for a configuration [L], and the input of layer l; (0, None) if there is none."""
        for layer in range(len(widths) - 1, 0, -1):
            prefix = tuple(widths[:layer])
            if (hidden := self._states.get(prefix)) is not None:
                self._states.move_to_end(prefix)
                return layer, hidden
        return 0, None

    def put(self, prefix: Sequence[int], hidden: torch.Tensor) -> None:
        """Remember the input of layer `len(prefix)`, of the same shape every time.

        Over the bound, the least recently used state makes room; nothing is kept if a single one is over it.
        """
        size = hidden.numel() * hidden.element_size()
        if size > self._max_bytes or tuple(prefix) in self._states:
            return
        if self._bytes + size > self._max_bytes:
            _, buffer = self._states.popitem(last=False)
            self._states[tuple(prefix)] = buffer.copy_(hidden)
        else:
            self._states[tuple(prefix)] = hidden.clone()
            self._bytes += size
