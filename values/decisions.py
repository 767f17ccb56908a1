"""The decisions that values and policy know: what they keep of a sub-layer, or of a whole layer, as a fraction.

Letters: N decisions, K options of the decision that has most.
"""

from collections.abc import Sequence

import numpy as np

from pruning.anatomy.architecture import DENSE, Architecture, Option, Sublayer
from pruning.arrays import IntArray
from pruning.errors import InputError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName
from pruning.planning.space import Decision, Space


def check_learnt(name: SpaceName) -> None:
    """Raises InputError for the name of a space that values and policy cannot learn: see `check_space`."""
    if name not in SPACES_OF_UNITS:
        raise InputError(
            f"a predictor is of one of the spaces {', '.join(SPACES_OF_UNITS)}",
            values=f"space '{name}'",
            remedy="Plans of other spaces need a search alone: `mcts` plans near its targets, `additive-dp` elsewhere",
        )


def check_space(space: Space) -> None:
    """What values and policy can learn: decisions of one sub-layer, or of whole layers, from few units to all of them.

    The values know a decision by the fraction of its units that it keeps.

    Raises:
        InputError: `space` is another one.
    """
    plain = all(options.bits is options.density is None for x in space.decisions for options in x.options)
    ascending = all(len(row) >= 2 and (np.diff(row) > 0).all() for row in space.units)
    if not (plain and ascending and space.architecture(space.top) == DENSE and _keeps_alike(space)):
        names = [f"{site.layer}.{site.sublayer}" for x in space.decisions for site in x.sites]
        raise InputError(
            "a predictor is of a space whose decisions go from few units to all, and sites that are decided together "
            "keep the same part",
            values=f"sites {', '.join(names)} with {', '.join(map(str, space.counts))} options",
            remedy="Search FFN widths, KV groups or layers",
        )


def _keeps_alike(space: Space) -> bool:
    return all(
        np.array_equal(options.units * space.dense[x.sites[0]], x.options[0].units * space.dense[site])
        for x in space.decisions
        for site, options in zip(x.sites, x.options, strict=True)
    )


def units_in(space: Space, architecture: Architecture) -> tuple[int, ...] | None:
    """What each decision [N] keeps of its first site, options of the space or not; None where something else is cut,
    sites that are decided together keep different parts, or one is skipped that the space never skips."""
    options = architecture.options
    found = []
    for decision in space.decisions:
        kept = [options.pop(site, Option(space.dense[site])) for site in decision.sites]
        first, dense = kept[0], space.dense[decision.sites[0]]
        alike = all(
            option.bits is option.density is None and option.units * dense == first.units * space.dense[site]
            for site, option in zip(decision.sites, kept, strict=True)
        )
        if not alike or first.units > dense or (first.units == 0 and decision.options[0].units[0] > 0):
            return None
        found.append(first.units)
    return None if options else tuple(found)


def kind_of(decision: Decision) -> tuple[Sublayer, ...]:
    """Which sub-layers of a layer it decides."""
    return tuple(site.sublayer for site in decision.sites)


def padded(rows: Sequence[IntArray]) -> IntArray:
    """[N, K] of ragged rows [N][K]: shorter ones repeat their last entry."""
    found = np.empty((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for row, filled in zip(rows, found, strict=True):
        filled[: len(row)], filled[len(row) :] = row, row[-1]
    return found


def is_of_ffn(space: Space) -> bool:
    """Whether nothing but FFN widths is decided, one by one."""
    return all(kind_of(decision) == (Sublayer.FFN,) for decision in space.decisions)


def pruned_decisions(space: Space, units: Sequence[int]) -> list[int]:
    """Indices of the decisions that do not keep all of their `units` [N]."""
    return [n for n, (kept, row) in enumerate(zip(units, space.units, strict=True)) if kept < row[-1]]
