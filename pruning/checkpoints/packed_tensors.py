"""Weights in few bits as a folder holds them, see `pruning.anatomy.packed_weights`: their shapes and bits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pruning.checkpoints.blocks import whole_blocks
from pruning.checkpoints.headers import StoredTensor
from pruning.errors import CheckpointError

_CODES, _SCALES, _SHAPE = "_packed", "_scale", "_shape"


@dataclass(frozen=True, slots=True)
class StoredPacked:
    """A weight [D, A] of which the files hold codes of `bits`."""

    shape: tuple[int, int]
    bits: int

    @property
    def parameters(self) -> int:
        """D x A."""
        return math.prod(self.shape)


def packed_in(stored: Mapping[str, StoredTensor]) -> dict[str, StoredPacked]:
    """The weights of `stored` in few bits, by the names that they have in a dense checkpoint. Of each, the two numbers
    of its shape are read.

    Raises CheckpointError if those do not fit its codes, or cannot be read.
    """
    found = {}
    for name, codes in stored.items():
        weight = name.removesuffix(_CODES)
        shape = stored.get(weight + _SHAPE)
        if weight == name or shape is None or (codes.dtype, shape.dtype, shape.shape) != ("I32", "I64", (2,)):
            continue
        outputs, inputs = np.concatenate(list(whole_blocks(shape))).view("<i8").tolist()
        if codes.shape[:1] != (outputs,) or inputs < 1 or 32 * codes.shape[-1] % inputs:
            raise CheckpointError(
                "the shape of a packed weight must be that of its codes",
                values=f"{shape.path}: {weight} of {outputs} x {inputs}, codes {list(codes.shape)}",
                remedy="Write the folder again",
            )
        found[weight] = StoredPacked((outputs, inputs), 32 * codes.shape[-1] // inputs)
    return found


def is_packed_part(name: str, packed: Mapping[str, StoredPacked]) -> bool:
    """Whether a tensor is the codes, the scales or the shape of one of the `packed` weights."""
    return any(name.removesuffix(end) in packed for end in (_CODES, _SCALES, _SHAPE) if name.endswith(end))
