"""What a decoder layer is made of: its tensors, and the units that can be cut out of them.

Letters: L decoder layers, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.arrays import IntArray


@dataclass(frozen=True, slots=True)
class Part:
    """A run of one axis of a tensor: `count` units of the dense sub-layer, one after the other, `size` indices each."""

    sublayer: Sublayer
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the checkpoint.

    Attributes:
        dtype: as safetensors names it.
        site: the sub-layer that it goes with when that is skipped; None: it always stays.
        axis: the axis that counts the site's units; None: it is never cut.
        parts: what that axis is made of, in order: one part, or several in a fused projection.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    site: Site | None = None
    axis: int | None = None
    parts: tuple[Part, ...] = ()

    def holds(self, sublayer: Sublayer) -> bool:
        """Whether units of that kind of sub-layer are cut out of it."""
        return any(part.sublayer is sublayer for part in self.parts)

    def shape_with(self, option: Option | None) -> tuple[int, ...] | None:
        """The tensor's shape when its site keeps `option`, or stays dense (None); None where the site is skipped."""
        if option is None or self.site is None:
            return self.shape
        if option.units == 0:
            return None
        if self.axis is None:
            return self.shape
        extent = self.shape[self.axis] // self.parts[0].count * option.units
        return (*self.shape[: self.axis], extent, *self.shape[self.axis + 1 :])

    def kept_indices(self, units: IntArray) -> IntArray:
        """Indices along `axis`, ascending, of the `units` that stay, which are ascending too."""
        kept, start = [], 0
        for part in self.parts:
            rows = units.astype(np.int64)[:, None] * part.size + np.arange(part.size)
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

    def units(self, sublayer: Sublayer) -> int:
        """FFN channels or KV groups of that half."""
        return self.ffn_width if sublayer is Sublayer.FFN else self.num_kv_groups


def architecture_of(
    layers: Sequence[DecoderLayer], ffn_widths: Sequence[int], kv_groups: Sequence[int] | None = None
) -> Architecture:
    """What keeps `ffn_widths` [L] channels and `kv_groups` [L], by default all, of the dense `layers`."""
    kept = {Sublayer.FFN: ffn_widths, Sublayer.ATTENTION: kv_groups}
    return Architecture.of(
        (Site(layer.index, sublayer), Option(int(units)))
        for sublayer, row in kept.items()
        if row is not None
        for units, layer in zip(row, layers, strict=True)
        if units != layer.units(sublayer)
    )
