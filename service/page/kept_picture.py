"""What a plan keeps of every site, as a picture: a column a layer, filled as far as its units are kept.

Letters: L decoder layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Sublayer

_LEFT, _RIGHT, _TOP = 46.0, 8.0, 6.0
_HEIGHTS = {Sublayer.FFN: 110.0, Sublayer.ATTENTION: 56.0}
_GAP, _FOOT = 14.0, 18.0
_MOST_WIDTH, _STEPS = 760.0, (48.0, 8.0)
"""Columns are between these widths, so that few layers do not look like walls and many still fit."""


@dataclass(frozen=True, slots=True)
class Column:
    """One site: its place in the picture, and what is kept there."""

    sublayer: Sublayer
    layer: int
    kept: int
    dense: int
    x: float
    y: float
    width: float
    height: float
    bits: int | None = None
    """Of its weights; None: as in the dense model."""
    density: float = 1.0
    """Share of its weights that are not zeroed."""

    @property
    def share(self) -> float:
        """Of its units and their weights, what is kept."""
        return self.kept / self.dense * self.density

    @property
    def filled(self) -> float:
        """Height of the filled part, which stands on the ground."""
        return round(self.height * self.share, 2)

    @property
    def words(self) -> str:
        """The same for who cannot see it."""
        unit = "channels" if self.sublayer is Sublayer.FFN else "KV groups"
        name = "FFN" if self.sublayer is Sublayer.FFN else "attention"
        state = "skipped" if self.kept == 0 else f"{self.kept:,} of {self.dense:,} {unit}"
        return f"layer {self.layer} {name}: {state}{self.of_weights}"

    @property
    def of_weights(self) -> str:
        """What is done to the weights that are kept, to be appended to how many units are; empty for nothing."""
        bits = "" if self.bits is None else f", {self.bits} bits"
        return bits + (f", density {self.density:g}" if self.density < 1.0 else "")


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """The columns of all sites, and the size of the picture in its own units."""

    columns: tuple[Column, ...]
    width: float
    height: float
    bands: tuple[tuple[str, float, float], ...]
    """A name, and where it is written [x, y]."""
    numbers: tuple[tuple[int, float], ...]
    """Layers that are numbered, and x of each."""

    @property
    def has_bits(self) -> bool:
        """Whether any weights are in fewer bits."""
        return any(column.bits is not None for column in self.columns)

    @property
    def zeroes(self) -> bool:
        """Whether any weights are zeroed: then nothing is removed."""
        return any(column.density < 1.0 for column in self.columns)

    @property
    def summary(self) -> str:
        """One sentence."""
        parts = []
        for sublayer, name in ((Sublayer.FFN, "FFN channels"), (Sublayer.ATTENTION, "KV groups")):
            own = [column for column in self.columns if column.sublayer is sublayer]
            share = sum(column.kept for column in own) / sum(column.dense for column in own)
            gone = sum(column.kept == 0 for column in own)
            fewer = sorted({column.bits for column in own if column.bits is not None})
            of_bits = [f", {sum(column.bits == bits for column in own)} in {bits} bits" for bits in fewer]
            thin = sum(column.density < 1.0 for column in own)
            of_density = f", of {thin} some weights zeroed" if thin else ""
            skipped = f", {gone} skipped" if gone else ""
            parts.append(f"{share:.0%} of {name}{skipped}{''.join(of_bits)}{of_density}")
        return f"Kept of {len(self.columns) // 2} layers: {'; '.join(parts)}"


def kept_picture(anatomy: ModelAnatomy, architecture: Architecture) -> KeptPicture:
    """The picture of what `architecture` keeps of the model."""
    dense: dict[Sublayer, Sequence[int]] = {
        Sublayer.FFN: [layer.ffn_width for layer in anatomy.layers],
        Sublayer.ATTENTION: [layer.num_kv_groups for layer in anatomy.layers],
    }
    step = max(_STEPS[1], min(_STEPS[0], (_MOST_WIDTH - _LEFT - _RIGHT) / anatomy.num_layers))
    columns: list[Column] = []
    bands: list[tuple[str, float, float]] = []
    y = _TOP
    for sublayer, height in _HEIGHTS.items():
        kept = architecture.units(sublayer, dense[sublayer])
        densities = architecture.densities(sublayer, anatomy.num_layers)
        bits = {site.layer: option.bits for site, option in architecture.items if site.sublayer is sublayer}
        columns += [
            Column(
                sublayer,
                layer,
                kept[layer],
                dense[sublayer][layer],
                x=round(_LEFT + layer * step, 2),
                y=y,
                width=round(step * 0.78, 2),
                height=height,
                bits=bits.get(layer),
                density=densities[layer],
            )
            for layer in range(anatomy.num_layers)
        ]
        bands.append(("FFN" if sublayer is Sublayer.FFN else "Attn", 2.0, y + height / 2 + 4))
        y += height + _GAP
    every = max(1, round(28 / step))
    numbers = tuple((layer, round(_LEFT + (layer + 0.39) * step, 2)) for layer in range(0, anatomy.num_layers, every))
    width = round(_LEFT + anatomy.num_layers * step + _RIGHT, 2)
    return KeptPicture(tuple(columns), width, y + _FOOT - _GAP + 4, tuple(bands), numbers)
