"""What may be chosen: a space of decisions, each with its options.

A choice is one option index for each decision, counted from 0; what no decision names stays dense. A coarse space is
searched, a fine one is planned in: both are the same thing. Letters: N decisions, K options of a decision (ragged).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer, count
from pruning.arrays import BoolArray, FloatArray, IntArray
from pruning.errors import InputError

Choice = tuple[int, ...]
"""Option indices [N], each from 0."""


@dataclass(frozen=True, eq=False)
class Options:
    """K options of one site, as columns: prices work on all of them at once.

    Attributes:
        units: [K].
        bits: [K], or None: all as dense.
        density: [K], or None: all as dense.
    """

    units: IntArray
    bits: tuple[int | None, ...] | None = None
    density: tuple[float | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> Option:
        bits = None if self.bits is None else self.bits[index]
        density = None if self.density is None else self.density[index]
        return Option(int(self.units[index]), bits, density)

    def __iter__(self) -> Iterator[Option]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def extents(self) -> FloatArray:
        """[K, 3] units, bits of their weights, and the share of these that stays; 0 of all where no unit is kept.

        An option keeps no less than another one if none of the three is less.
        """
        kept = self.units > 0
        bits = np.array([16 if x is None else x for x in self.bits or (None,) * len(self)])
        density = np.array([1.0 if x is None else x for x in self.density or (None,) * len(self)])
        return np.stack([self.units, kept * bits, kept * density], axis=1)

    def take(self, indices: IntArray) -> "Options":
        """Those at `indices`, in their order."""
        bits = None if self.bits is None else tuple(self.bits[i] for i in indices)
        density = None if self.density is None else tuple(self.density[i] for i in indices)
        return Options(self.units[indices], bits, density)

    @classmethod
    def of(cls, options: Sequence[Option]) -> "Options":
        """From single ones."""
        bits, density = tuple(x.bits for x in options), tuple(x.density for x in options)
        return cls(
            np.array([x.units for x in options], dtype=np.int64),
            bits if any(x is not None for x in bits) else None,
            density if any(x is not None for x in density) else None,
        )


@dataclass(frozen=True, eq=False)
class Decision:
    """Sites that are decided together, usually one, and K options for each of them.

    The first option keeps least and the last one most: as much as is allowed of the dense model.
    """

    sites: tuple[Site, ...]
    options: tuple[Options, ...]

    @property
    def num_options(self) -> int:
        return len(self.options[0])

    @cached_property
    def kept(self) -> tuple[tuple[Option, ...], ...]:
        """[K] what each option is at every site."""
        return tuple(zip(*self.options, strict=True))

    @cached_property
    def index_of(self) -> dict[tuple[Option, ...], int]:
        """Which option it is that keeps so much at every site; of equal ones, the first."""
        return {kept: k for k, kept in reversed(list(enumerate(self.kept)))}

    def take(self, indices: IntArray) -> "Decision":
        """The same decision among the options at `indices` only."""
        return Decision(self.sites, tuple(options.take(indices) for options in self.options))


@dataclass(frozen=True, eq=False)
class Space:
    """All decisions, in the model's order. Two spaces are the same when their documents are: `==` is identity.

    Args:
        decisions: [N].
        dense: units of the dense model at each site that a decision names.
    """

    decisions: tuple[Decision, ...]
    dense: Mapping[Site, int]

    @property
    def num_decisions(self) -> int:
        return len(self.decisions)

    @cached_property
    def counts(self) -> IntArray:
        """[N] options of each decision."""
        return np.array([decision.num_options for decision in self.decisions], dtype=np.int64)

    @cached_property
    def units(self) -> tuple[IntArray, ...]:
        """[N][K] what the options of each decision keep of its first site: all of it, where it has one site."""
        return tuple(decision.options[0].units for decision in self.decisions)

    @cached_property
    def dense_units(self) -> IntArray:
        """[N] what the dense model has there."""
        return np.array([self.dense[decision.sites[0]] for decision in self.decisions], dtype=np.int64)

    @cached_property
    def amounts(self) -> tuple[FloatArray, ...]:
        """[N][K] as `units`, but of weights in fewer bits than 16, or of which a share is zeroed, so much less."""
        return tuple(
            np.array([x.units * (x.bits or 16) / 16 * (x.density or 1.0) for x in decision.options[0]])
            for decision in self.decisions
        )

    @cached_property
    def has_bits(self) -> bool:
        """Whether options differ in the bits of their weights."""
        return any(options.bits is not None for decision in self.decisions for options in decision.options)

    @cached_property
    def has_density(self) -> bool:
        """Whether options differ in the share of their weights that stays."""
        return any(options.density is not None for decision in self.decisions for options in decision.options)

    @cached_property
    def is_of_units(self) -> bool:
        """Whether options differ in their units alone."""
        return all(x.bits is x.density is None for decision in self.decisions for x in decision.options)

    @cached_property
    def of_ladders(self) -> bool:
        """Each decision is of one site, whose options differ in their units alone, ascending."""
        return all(
            len(x.sites) == 1 and x.options[0].bits is x.options[0].density is None and (np.diff(units) > 0).all()
            for x, units in zip(self.decisions, self.units, strict=True)
        )

    @cached_property
    def steps_up(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """[N][K] the options that keep one step more than each: the next one, where options differ in units alone; else
        those that keep more of something and no less of anything, with none in between."""
        if self.is_of_units:
            return tuple(tuple((k + 1,) if k + 1 < count else () for k in range(count)) for count in self.counts)
        return tuple(_covers(decision.options[0]) for decision in self.decisions)

    @cached_property
    def steps_down(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """[N][K] the options that keep one step less: the inverse of `steps_up`."""
        return tuple(
            tuple(tuple(k for k, above in enumerate(row) if option in above) for option in range(len(row)))
            for row in self.steps_up
        )

    @cached_property
    def bottom(self) -> Choice:
        """The first option everywhere: what keeps least."""
        return (0,) * self.num_decisions

    @cached_property
    def top(self) -> Choice:
        """The last option everywhere: the dense model, as far as it is allowed."""
        return tuple(int(k) - 1 for k in self.counts)

    def units_of(self, choice: Sequence[int] | IntArray) -> tuple[int, ...]:
        """[N] units that `choice` [N] keeps of each decision's first site."""
        return tuple(int(row[k]) for row, k in zip(self.units, choice, strict=True))

    def architecture(self, choice: Sequence[int] | IntArray) -> Architecture:
        """What `choice` [N] keeps; everything else is dense."""
        found = {
            site: option
            for decision, k in zip(self.decisions, choice, strict=True)
            for site, option in zip(decision.sites, decision.kept[k], strict=True)
            if option != self._dense_options[site]
        }
        return Architecture.of(found)

    def choice_of(self, architecture: Architecture) -> Choice | None:
        """The choice [N] whose architecture this is; None if it is no point of the space."""
        options = architecture.options
        choice = []
        for decision in self.decisions:
            kept = tuple(options.pop(site, self._dense_options[site]) for site in decision.sites)
            if (k := decision.index_of.get(kept)) is None:
                return None
            choice.append(k)
        return None if options else tuple(choice)

    @cached_property
    def _dense_options(self) -> dict[Site, Option]:
        return {site: Option(units) for site, units in self.dense.items()}

    def at_most(self, units: Sequence[float] | FloatArray | IntArray) -> IntArray:
        """[N] options that keep no more than `units` [N], the widest of them; the first one where there is none.

        For ladders: see `of_ladders`.
        """
        most, found = np.asarray(units), np.empty(self.num_decisions, dtype=np.int64)
        for row, alike in self.ladders:
            found[alike] = np.searchsorted(row, most[alike], side="right") - 1
        return np.maximum(found, 0)

    def not_above(self, architecture: Architecture) -> IntArray:
        """[N] options that keep no more of anything than `architecture` does at each decision's first site: of these
        that of most units, then of most bits; the first one where there is none."""
        found = np.zeros(self.num_decisions, dtype=np.int64)
        for n, (decision, most) in enumerate(zip(self.decisions, self.extents_of(architecture), strict=True)):
            kept = decision.options[0].extents
            no_more = np.flatnonzero((kept <= most).all(axis=1))
            if len(no_more):
                found[n] = no_more[np.lexsort(kept[no_more].T[::-1])[-1]]
        return found

    def extents_of(self, architecture: Architecture) -> FloatArray:
        """[N, 3] `Options.extents` of what `architecture` keeps at each decision's first site."""
        options = architecture.options
        first = [decision.sites[0] for decision in self.decisions]
        kept = [options.get(site, self._dense_options[site]) for site in first]
        return np.concatenate([Options.of([option]).extents for option in kept])

    @cached_property
    def ladders(self) -> list[tuple[IntArray, list[int]]]:
        """The different rows of `units`, and the decisions of each: in most models there is one."""
        alike: dict[bytes, list[int]] = {}
        for n, row in enumerate(self.units):
            alike.setdefault(row.tobytes(), []).append(n)
        return [(self.units[places[0]], places) for places in alike.values()]

    def places_of(self, levels: "Space") -> IntArray | None:
        """[N of `levels`] which decision of this space each of theirs is; None if this space decides anything else, of
        which it leaves more than one option, or lacks one."""
        places = {decision.sites: n for n, decision in enumerate(self.decisions)}
        found = [places.pop(decision.sites, -1) for decision in levels.decisions]
        if min(found) < 0 or any(self.counts[n] > 1 for n in places.values()):
            return None
        return np.array(found, dtype=np.int64)

    def not_below(self, units: Sequence[int]) -> "Space":
        """This space without options of fewer than `units` [N]; where all have fewer, the widest stays."""
        kept = []
        for decision, row, least in zip(self.decisions, self.units, units, strict=True):
            enough = np.flatnonzero(row >= min(least, int(row.max())))
            kept.append(decision.take(enough))
        return Space(tuple(kept), self.dense)

    def tables(self, of: Callable[[Site, Options], IntArray]) -> tuple[IntArray, ...]:
        """[N][K]: what `of` says of the options of each site, summed over the sites of a decision."""
        return tuple(
            reduce(np.add, (of(site, options) for site, options in zip(x.sites, x.options, strict=True)))
            for x in self.decisions
        )

    def document(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_document`. Stored with every search and predictor."""
        return {
            "decisions": [
                [
                    {
                        "layer": site.layer,
                        "sublayer": site.sublayer.value,
                        "dense": self.dense[site],
                        "units": options.units.tolist(),
                        **({} if options.bits is None else {"bits": list(options.bits)}),
                        **({} if options.density is None else {"density": list(options.density)}),
                    }
                    for site, options in zip(decision.sites, decision.options, strict=True)
                ]
                for decision in self.decisions
            ]
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Space":
        """Raises InputError if the document is none of a space."""
        try:
            dense: dict[Site, int] = {}
            decisions = []
            for sites in document["decisions"]:
                names = tuple(Site(count(x["layer"]), Sublayer(x["sublayer"])) for x in sites)
                options = tuple(_options(x) for x in sites)
                if not options or any(len(x) != len(options[0]) or not len(x) for x in options):
                    raise ValueError("a decision has as many options at each of its sites, at least one")
                if len(set(names)) < len(names) or not dense.keys().isdisjoint(names):
                    raise ValueError(f"a site is decided once: {names}")
                dense |= {site: count(x["dense"]) for site, x in zip(names, sites, strict=True)}
                if any(int(x.units.max()) > dense[site] for site, x in zip(names, options, strict=True)):
                    raise ValueError(f"no option keeps more than the dense model: {names}")
                decisions.append(Decision(names, options))
            space = cls(tuple(decisions), dense)
            if not decisions or space.document() != document:
                raise ValueError("there is a decision, and nothing that this version does not know")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                "a space is a list of decisions, each with its sites and their options",
                values=repr(error),
                remedy="Search again with this version, or upgrade lop-service",
            ) from error
        return space


def _covers(options: Options) -> tuple[tuple[int, ...], ...]:
    """[K] of each option those that keep more, with none in between."""
    kept = options.extents
    no_less: BoolArray = np.all(kept[None] >= kept[:, None], axis=2)
    more: BoolArray = no_less & np.any(kept[None] > kept[:, None], axis=2)
    between: BoolArray = np.any(more[:, :, None] & more[None], axis=1)
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in more & ~between)


def _options(document: Mapping[str, Any]) -> Options:
    units = document["units"]
    nothing = [None] * len(units)
    rows = zip(units, document.get("bits", nothing), document.get("density", nothing), strict=True)
    return Options.of([Option(*row).checked() for row in rows])
