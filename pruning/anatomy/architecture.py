"""What a pruned model keeps, site by site: the one description that searches, prices, plans and surgery share."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from typing import Any, NamedTuple

from pruning.errors import InputError


class Sublayer(StrEnum):
    """The two halves of a decoder layer."""

    ATTENTION = "attention"
    FFN = "ffn"

    __hash__ = str.__hash__  # Enum's own is written in Python, and every plan looks up hundreds of sites


class Site(NamedTuple):
    """One sub-layer of one decoder layer."""

    layer: int
    sublayer: Sublayer


@dataclass(frozen=True, slots=True)
class Option:
    """All that one site keeps, at once. What is None is as the dense model has it.

    Attributes:
        units: FFN channels, or KV groups with all their query heads; 0: the sub-layer is skipped, its norm too.
        bits: of its weights.
        density: share of its weights that are not zeroed.
    """

    units: int
    bits: int | None = None
    density: float | None = None

    def document(self) -> dict[str, Any]:
        """Plain JSON types; what is None is absent."""
        said = {"bits": self.bits, "density": self.density}
        return {"units": self.units} | {name: value for name, value in said.items() if value is not None}

    def checked(self) -> "Option":
        """The same, for what is read from a document; raises ValueError where it is no option of any model."""
        count(self.units)
        bits_fit = self.bits is None or (type(self.bits) is int and 1 <= self.bits <= 16)
        density_fits = self.density is None or (type(self.density) is float and 0 < self.density < 1)
        if not (bits_fit and density_fits) or (self.units == 0 and self != Option(0)):
            raise ValueError(f"bits are 1..16, a density is between 0 and 1, what is skipped has neither: {self}")
        return self


@dataclass(frozen=True, slots=True)
class Architecture:
    """What every site of a model keeps. Sparse: a site that is absent is dense. Build one with `Architecture.of`.

    Equal architectures are equal, hash alike and have one document, whatever they were built from; an option that
    keeps everything must not be in it, which only the model's anatomy can tell: see `ModelAnatomy.architecture`.
    """

    items: tuple[tuple[Site, Option], ...] = ()

    @classmethod
    def of(cls, options: Mapping[Site, Option] | Iterable[tuple[Site, Option]]) -> "Architecture":
        """From an option for each site that is not dense."""
        pairs: dict[Site, Option] = dict(options)
        return cls(tuple(sorted(pairs.items(), key=itemgetter(0))))

    @property
    def options(self) -> dict[Site, Option]:
        """By site."""
        return dict(self.items)

    def units(self, sublayer: Sublayer, dense: Sequence[int]) -> tuple[int, ...]:
        """[L] units that every layer keeps there, of the `dense` model's [L]. Raises InputError for layers beyond."""
        kept = list(dense)
        for site, option in self.items:
            if site.sublayer is sublayer:
                if site.layer >= len(kept):
                    raise foreign_site(site, option, None)
                kept[site.layer] = option.units
        return tuple(kept)

    def densities(self, sublayer: Sublayer, num_layers: int) -> tuple[float, ...]:
        """[L] share of the weights of what every layer keeps there that are not zeroed."""
        options = self.options
        own = (options.get(Site(layer, sublayer)) for layer in range(num_layers))
        return tuple(1.0 if option is None or option.density is None else option.density for option in own)

    def bits(self, sublayer: Sublayer, num_layers: int) -> tuple[int | None, ...]:
        """[L] bits of the weights of what every layer keeps there; None: their dtype is the dense model's."""
        options = self.options
        own = (options.get(Site(layer, sublayer)) for layer in range(num_layers))
        return tuple(None if option is None else option.bits for option in own)

    def document(self) -> list[dict[str, Any]]:
        """`[{"index", "ffn": {"units", ..}, "attention": {..}}]`: layers in order; those that are dense are absent."""
        layers: dict[int, dict[str, Any]] = {}
        for site, option in self.items:
            layers.setdefault(site.layer, {"index": site.layer})[site.sublayer.value] = option.document()
        return list(layers.values())

    @classmethod
    def from_document(cls, document: Sequence[Mapping[str, Any]]) -> "Architecture":
        """The inverse of `document`; raises InputError for what is no architecture's document."""
        try:
            found = cls.of(
                (Site(count(layer["index"]), sublayer), Option(**layer[sublayer.value]).checked())
                for layer in document
                for sublayer in Sublayer
                if sublayer.value in layer
            )
            if found.document() != document:
                raise ValueError("layers are in order, each once, and say what their FFN or attention keeps")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                "an architecture is a list of layers, each with the options of its sub-layers that are not dense",
                values=repr(error),
                remedy="Upgrade lop-service if a newer version wrote it",
            ) from error
        return found

    @property
    def key(self) -> str:
        """sha256 of the canonical document: 64 hex digits."""
        canonical = json.dumps(self.document(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


DENSE = Architecture()
"""The model as it is."""


def foreign_site(site: Site, option: Option, dense: int | None) -> InputError:
    """What is wrong with `option` at a site of which the model has `dense` units, or None: no such site."""
    return InputError(
        "an architecture names sites of its model, and keeps at most the units of each",
        values=f"layer {site.layer}, {site.sublayer}: {option}, dense {dense}",
        remedy="Make it with ModelAnatomy.architecture or Space.architecture",
    )


def count(value: object) -> int:
    """What a document says, as an integer from 0 that 64 bits hold; raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"not a count: {value!r}")
    return value
