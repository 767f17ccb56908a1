"""What a decoder layer is made of: its tensors, and the units that can be cut out of them.

Letters: L decoder layers, D model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from pruning.arrays import IntArray


class Unit(StrEnum):
    """What is removed whole. A KV group is a key head, a value head and all the query heads that share them."""

    FFN_CHANNEL = "ffn_channel"
    KV_GROUP = "kv_group"


@dataclass(frozen=True, slots=True)
class Part:
    """A run of one axis of a tensor: `count` units of the dense layer, one after the other, `size` indices each."""

    unit: Unit
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """What every layer keeps: FFN channels [L] and KV groups [L]."""

    ffn_widths: tuple[int, ...]
    kv_groups: tuple[int, ...]

    def count(self, layer: int, unit: Unit) -> int:
        """How many units of that kind `layer` keeps."""
        return (self.ffn_widths if unit is Unit.FFN_CHANNEL else self.kv_groups)[layer]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the checkpoint.

    Attributes:
        dtype: as safetensors names it.
        layer: the decoder layer whose units it holds; None: it is never cut.
        axis: the axis that counts units.
        parts: what that axis is made of, in order: one part, or several in a fused projection.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layer: int | None = None
    axis: int | None = None
    parts: tuple[Part, ...] = ()

    def holds(self, unit: Unit) -> bool:
        """Whether units of that kind are cut out of it."""
        return any(part.unit is unit for part in self.parts)

    def shape_with(self, sizes: DecoderSizes) -> tuple[int, ...]:
        """The tensor's shape when every layer keeps `sizes`."""
        if self.layer is None or self.axis is None:
            return self.shape
        extent = sum(sizes.count(self.layer, part.unit) * part.size for part in self.parts)
        return (*self.shape[: self.axis], extent, *self.shape[self.axis + 1 :])

    def kept_indices(self, units: Mapping[Unit, IntArray]) -> IntArray:
        """Indices along `axis`, ascending, of the `units` that stay, which are ascending too."""
        kept, start = [], 0
        for part in self.parts:
            rows = units[part.unit].astype(np.int64)[:, None] * part.size + np.arange(part.size)
            kept.append(start + rows.ravel())
            start += part.count * part.size
        return np.concatenate(kept)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One decoder layer of the dense model.

    `ffn_parameters_per_channel` counts every weight and bias that goes when one FFN channel goes
    (gate row, up row, down column: 3 D for a gated FFN without biases).
    `parameters` counts the whole layer, norms included.
    `window` is how many positions a sliding window sees, and a cache keeps; None: all of them.
    """

    index: int
    ffn_width: int
    num_heads: int
    num_kv_groups: int
    head_dim: int
    ffn_parameters_per_channel: int
    parameters: int
    # Models that were registered before it was recorded are still the same models.
    window: int | None = field(default=None, compare=False)

    @property
    def ffn_parameters(self) -> int:
        """Parameters that FFN pruning can remove, all channels."""
        return self.ffn_width * self.ffn_parameters_per_channel

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a key head and a value head."""
        return self.num_heads // self.num_kv_groups

    @property
    def units(self) -> dict[Unit, int]:
        """How many of each unit there are."""
        return {Unit.FFN_CHANNEL: self.ffn_width, Unit.KV_GROUP: self.num_kv_groups}
