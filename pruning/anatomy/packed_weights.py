"""Weights in few bits as files hold them: which tensors of a sub-layer, in which layout, and how many bytes that saves.

The layout is compressed-tensors' "pack-quantized": of a weight [D, A] in b bits `weight_packed` [D, A b / 32] int32,
`weight_scale` [D, A / g] in the weight's own dtype, `weight_shape` [2] int64. Groups of g inputs share a scale, so the
inputs that are kept are whole groups. g is 32 here: as in llama.cpp's q8_0 and q4_0, and it divides most widths.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site
from pruning.anatomy.decoder_layer import TensorSpec
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.arrays import BoolArray, IntArray

GROUP = 32
"""Inputs that share a scale."""

FEWER_BITS = (8, 4)
"""What a sub-layer's weights may be stored in, besides their own dtype."""

_SHAPE_BYTES = 2 * DTYPE_BYTES["I64"]


def is_packed(tensor: TensorSpec) -> bool:
    """Whether the tensor is stored in few bits where its site is: the weight of a projection."""
    return tensor.axis is not None and len(tensor.shape) == 2 and tensor.name.endswith(".weight")


@lru_cache(maxsize=64)
def packed_weights(anatomy: ModelAnatomy) -> dict[Site, tuple[TensorSpec, ...]]:
    """The dense weights of each site that are stored in few bits; an anatomy that lists no tensors has none."""
    found: dict[Site, tuple[TensorSpec, ...]] = {}
    for tensor in anatomy.tensors:
        if tensor.site is not None and is_packed(tensor):
            found[tensor.site] = (*found.get(tensor.site, ()), tensor)
    return found


def packed_headers(name: str, shape: tuple[int, int], dtype: str, bits: int, group: int = GROUP) -> list[TensorHeader]:
    """What stands in the files in the place of the weight `name` of that shape: codes, scales, and the shape."""
    outputs, inputs = shape
    return [
        (f"{name}_packed", (outputs, inputs * bits // 32), "I32"),
        (f"{name}_scale", (outputs, inputs // group), dtype),
        (f"{name}_shape", (2,), "I64"),
    ]


def come_in_groups(weights: Sequence[TensorSpec], units: IntArray, *, shards: int = 1) -> BoolArray:
    """[K] whether every weight of a site has whole groups of inputs where the site keeps `units` [K]; with `shards`,
    also when these are divided among so many devices. Never, where there are no weights or no units."""
    whole = np.full(len(units), bool(weights)) & (units > 0)
    for tensor in weights:
        if tensor.axis == 1:
            whole &= _extent(tensor, units) % (GROUP * shards) == 0
        elif tensor.shape[1] % GROUP:
            whole &= False
    return whole


def saved_bytes(weights: Sequence[TensorSpec], units: IntArray, bits: int) -> IntArray:
    """[K] bytes that storing `weights` in `bits` saves against their own dtype, where their site keeps `units` [K], at
    which they come in groups."""
    saved = np.zeros(len(units), dtype=np.int64)
    for tensor in weights:
        extent = _extent(tensor, units)
        outputs, inputs = (extent, tensor.shape[1]) if tensor.axis == 0 else (tensor.shape[0], extent)
        own = DTYPE_BYTES[tensor.dtype]
        saved += outputs * inputs * own - outputs * inputs * bits // 8 - outputs * (inputs // GROUP) * own
        saved -= _SHAPE_BYTES
    return saved


def _extent(tensor: TensorSpec, units: IntArray) -> IntArray:
    assert tensor.axis is not None
    extent: IntArray = tensor.shape[tensor.axis] // tensor.parts[0].count * units
    return extent
