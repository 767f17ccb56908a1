"""Hidden states of layer prefixes that architectures share, within a bound of bytes: least recently used out."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

LEAST_CACHE_BYTES = 512 * 2**20


def default_cache_bytes(model_bytes: int) -> int:
    """What an evaluator keeps, dense probabilities included, unless told otherwise: a quarter of the model's size."""
    return max(LEAST_CACHE_BYTES, model_bytes // 4)


class PrefixCache:
    """The input of layer l, [B, T, D], of one batch, by what layers 0..l-1 keep.

    Where only few states fit, it keeps those of every so many layers, so that those of two architectures do. Keeps
    copies, in buffers that are made once and then reused: allocating and freeing states in turn with activations of
    ever other sizes leaves holes in the heap that add up to more than the bound. What `longest` gives out may be
    overwritten by the next `put`. Not thread-safe.
    """

    def __init__(self, max_bytes: int, *, state_bytes: int, num_layers: int) -> None:
        self._slots = max_bytes // state_bytes
        self._state_bytes = state_bytes
        wanted = -(-2 * (num_layers - 1) // max(1, self._slots))
        self._stride = max(1, min(wanted, num_layers // 2))
        self._states: OrderedDict[tuple[Hashable, ...], torch.Tensor] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """What is held now; never over the bound."""
        return len(self._states) * self._state_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()

    def longest(self, kept: Sequence[Hashable]) -> tuple[int, torch.Tensor | None]:
        """The deepest known l where layers keep this [L], and the input of layer l; (0, None) if there is none.

        Counts as a use of the shorter prefixes too, last of the shortest: most architectures share those.
        """
        found: tuple[int, torch.Tensor | None] = (0, None)
        for layer in range(len(kept) - 1, 0, -1):
            prefix = tuple(kept[:layer])
            if (hidden := self._states.get(prefix)) is not None:
                self._states.move_to_end(prefix)
                if found[1] is None:
                    found = (layer, hidden)
        return found

    def put(self, prefix: Sequence[Hashable], hidden: torch.Tensor) -> None:
        """Remember the input of layer `len(prefix)`; the least recently used one makes room."""
        key = tuple(prefix)
        if self._slots == 0 or len(key) % self._stride or key in self._states:
            return
        if len(self._states) == self._slots:
            _, buffer = self._states.popitem(last=False)
            self._states[key] = buffer.copy_(hidden)
        else:
            self._states[key] = hidden.clone()
