"""What an architecture keeps of each decoder layer, in a form that tables and pictures share.

Letters: L decoder layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruning.anatomy.architecture import Architecture, Sublayer

FFN, ATTENTION = Sublayer.FFN, Sublayer.ATTENTION
Units = Mapping[Sublayer, Sequence[int]]
"""[L] FFN channels and KV groups, by sub-layer."""


@dataclass(frozen=True)
class KeptLayers:
    """Units [L] that each sub-layer keeps, of the units [L] that it has in the dense model, and the densities [L] of
    their weights; and whether attention could have been changed: that it stays whole is then worth showing."""

    units: Units
    dense: Units
    densities: Mapping[Sublayer, Sequence[float]]
    may_change_attention: bool = False

    @classmethod
    def of(cls, architecture: Architecture, dense: Units, *, may_change_attention: bool = False) -> "KeptLayers":
        """Raises InputError if `architecture` names a layer beyond those of `dense`."""
        num_layers = len(dense[FFN])
        return cls(
            {sublayer: architecture.units(sublayer, dense[sublayer]) for sublayer in (FFN, ATTENTION)},
            dense,
            {sublayer: architecture.densities(sublayer, num_layers) for sublayer in (FFN, ATTENTION)},
            may_change_attention,
        )

    @property
    def num_layers(self) -> int:
        return len(self.dense[FFN])

    @property
    def changes_attention(self) -> bool:
        """Whether any layer's attention is not as in the dense model."""
        return tuple(self.units[ATTENTION]) != tuple(self.dense[ATTENTION]) or min(self.densities[ATTENTION]) < 1.0

    @property
    def zeroes(self) -> bool:
        """Whether single weights are zeroed of any layer: then nothing is removed."""
        return any(density < 1.0 for own in self.densities.values() for density in own)

    def fractions(self, sublayer: Sublayer) -> list[float]:
        """[L] kept fractions, of units and their weights."""
        rows = zip(self.units[sublayer], self.dense[sublayer], self.densities[sublayer], strict=True)
        return [kept / most * density for kept, most, density in rows]

    def skipped(self, sublayer: Sublayer) -> list[int]:
        """Layers whose `sublayer` is skipped while the other one is not."""
        other = ATTENTION if sublayer is FFN else FFN
        return [i for i in self._without(sublayer) if self.units[other][i] > 0]

    @property
    def gone(self) -> list[int]:
        """Layers both of whose sub-layers are skipped."""
        return [i for i in self._without(FFN) if self.units[ATTENTION][i] == 0]

    def _without(self, sublayer: Sublayer) -> list[int]:
        return [i for i, kept in enumerate(self.units[sublayer]) if kept == 0]


def skips_in_words(kept: KeptLayers) -> str:
    """The sub-layers that are not run, by layer; empty if all are."""
    groups = (
        ("whole layers", kept.gone),
        ("attention of layers", kept.skipped(ATTENTION)),
        ("FFN of layers", kept.skipped(FFN)),
    )
    return "; ".join(f"{name} {', '.join(map(str, layers))}" for name, layers in groups if layers)


def gauge(fraction: float, width: int = 8, *, plain: bool = False) -> str:
    """A bar of `width` characters, filled as far as `fraction` says: never full or empty unless it is 1 or 0.

    `plain` is for terminals that have no blocks.
    """
    filled = round(fraction * width)
    if 0.0 < fraction < 1.0:
        filled = min(max(filled, 1), width - 1)
    full, empty = "#." if plain else "█░"
    return full * filled + empty * (width - filled)
