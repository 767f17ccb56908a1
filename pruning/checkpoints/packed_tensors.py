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
    """A weight [D, A] of which the files hold `codes` of `bits` and `scales` [D, A / g]; `name` is the dense one's."""

    name: str
    shape: tuple[int, int]
    bits: int
    codes: StoredTensor
    scales: StoredTensor

    @property
    def group(self) -> int:
        """g: inputs that share a scale."""
        return self.shape[1] // self.scales.shape[1]

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
        shape, scales = stored.get(weight + _SHAPE), stored.get(weight + _SCALES)
        if weight == name or shape is None or (codes.dtype, shape.dtype, shape.shape) != ("I32", "I64", (2,)):
            continue
        outputs, inputs = np.concatenate(list(whole_blocks(shape))).view("<i8").tolist()
        if codes.shape[:1] != (outputs,) or inputs < 1 or 32 * codes.shape[-1] % inputs:
            raise _wrong(weight, shape, (outputs, inputs), "codes", list(codes.shape))
        groups = 0 if scales is None or len(scales.shape) != 2 else scales.shape[1]
        if scales is None or groups < 1 or scales.shape[0] != outputs or inputs % groups:
            raise _wrong(weight, shape, (outputs, inputs), "scales", "none" if scales is None else list(scales.shape))
        found[weight] = StoredPacked(weight, (outputs, inputs), 32 * codes.shape[-1] // inputs, codes, scales)
    return found


def _wrong(
    weight: str, shape: StoredTensor, said: tuple[int, int], part: str, found: list[int] | str
) -> CheckpointError:
    return CheckpointError(
        f"the shape of a packed weight must be that of its {part}",
        values=f"{shape.path}: {weight} of {said[0]} x {said[1]}, {part} {found}",
        remedy="Write the folder again",
    )


def with_packed(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor | StoredPacked]:
    """`stored` with packed weights by the names that they have in a dense checkpoint, in the place of their parts.

    Raises as `packed_in`.
    """
    packed = packed_in(stored)
    return {**{name: x for name, x in stored.items() if not is_packed_part(name, packed)}, **packed}


def is_packed_part(name: str, packed: Mapping[str, StoredPacked]) -> bool:
    """Whether a tensor is the codes, the scales or the shape of one of the `packed` weights."""
    return any(name.removesuffix(end) in packed for end in (_CODES, _SCALES, _SHAPE) if name.endswith(end))
