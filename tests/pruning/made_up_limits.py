"""Spaces and limits made of numbers alone, and what they mean worked out from the definitions, choice by choice."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.space import Choice, Decision, Options, Space


def ladders(*rows: Iterable[int]) -> Space:
    """One decision a layer among FFN widths; the last one is dense."""
    columns = [np.array(list(row), dtype=np.int64) for row in rows]
    sites = [Site(layer, Sublayer.FFN) for layer in range(len(columns))]
    decisions = tuple(Decision((site,), (Options(row),)) for site, row in zip(sites, columns, strict=True))
    return Space(decisions, {site: int(row[-1]) for site, row in zip(sites, columns, strict=True)})


def limit(kind: LimitKind, most: int, fixed: int, *rows: Iterable[int]) -> Limit:
    """Of costs [N][K]."""
    return Limit(kind, most, fixed, tuple(np.array(list(row), dtype=np.int64) for row in rows))


def limits_of(*limits: Limit) -> Limits:
    """Over a space whose widths are 8, 16, 24..."""
    return Limits(ladders(*(range(8, 8 * len(row) + 1, 8) for row in limits[0].costs)), limits)


def cost_of(limit: Limit, choice: Sequence[int] | IntArray) -> int:
    """What `choice` [N] costs: the definition."""
    return limit.fixed + sum(int(row[k]) for row, k in zip(limit.costs, choice, strict=True))


def meets(limits: Limits, choice: Sequence[int] | IntArray) -> bool:
    """No limit is exceeded: the definition."""
    return all(cost_of(x, choice) <= x.most for x in limits.limits)


def is_above(limits: Limits, n: int, now: int, other: int) -> bool:
    """Whether option `other` of decision `n` is above `now`: the definition."""
    more = [int(x.costs[n][other]) - int(x.costs[n][now]) for x in limits.limits]
    return min(more) >= 0 and (max(more) > 0 or other > now)


def is_tight(limits: Limits, choice: Sequence[int] | IntArray) -> bool:
    """All limits are met and no option above that of any single decision fits: the definition."""
    wider = (
        [*choice[:n], k, *choice[n + 1 :]]
        for n in range(len(choice))
        for k in range(len(limits.limits[0].costs[n]))
        if is_above(limits, n, int(choice[n]), k)
    )
    return meets(limits, choice) and not any(meets(limits, x) for x in wider)


def every_choice(limits: Limits) -> Iterator[Choice]:
    """All of the space: keep it small."""
    return itertools.product(*(range(int(count)) for count in limits.space.counts))


@st.composite
def ragged_limits(
    draw: st.DrawFn,
    *,
    max_limits: int = 3,
    max_decisions: int = 5,
    max_options: int = 5,
    ladder: bool = False,
    least_step: int = 0,
) -> Limits:
    """Limits that can be met, over decisions of 1 to `max_options` options; each has an option that is the cheapest.

    With `ladder`, all costs grow along the options, by `least_step` at least.
    """
    counts = draw(st.lists(st.integers(1, max_options), min_size=1, max_size=max_decisions))
    kinds = draw(st.lists(st.sampled_from(list(LimitKind)), min_size=1, max_size=max_limits, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    floors = [rng.integers(count) for count in counts]
    limits = []
    for kind in kinds:
        rows = []
        for count, floor in zip(counts, floors, strict=True):
            costs = rng.integers(least_step, 10, count)
            if not ladder:
                costs[floor] = 0
            rows.append(rng.integers(5) + (costs.cumsum() if ladder else costs))
        fixed = draw(st.integers(0, 20))
        least, most = (fixed + sum(int(of(row)) for row in rows) for of in (np.min, np.max))
        limits.append(Limit(kind, draw(st.integers(least, most + 2)), fixed, tuple(rows)))
    return limits_of(*limits)


def draw_choice(data: st.DataObject, space: Space) -> Choice:
    """Any choice of the space."""
    return tuple(data.draw(st.integers(0, int(count) - 1)) for count in space.counts)


def draw_worth(data: st.DataObject, space: Space) -> FloatArray:
    """[N, K] of any sign; often with ties."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = (space.num_decisions, int(space.counts.max()))
    return rng.normal(size=shape) if data.draw(st.booleans()) else rng.integers(-2, 3, shape).astype(np.float64)
