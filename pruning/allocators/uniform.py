"""The same retention in every layer: the baseline that every other allocation has to beat."""

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limits
from pruning.planning.space import Space


def uniform_choice(limits: Limits) -> IntArray:
    """[N] the greatest equal retention that meets `limits`; then what still fits, narrow layers first. For ladders, and
    for decisions on several sites that keep as much of each, relatively."""
    return limits.fit(_widest_equal(limits), even_worth(limits))


def even_worth(limits: Limits) -> FloatArray:
    """[N, K] what options are worth where decisions are to keep alike: `evenness`, in what units cost where those are
    channels here and KV groups there."""
    kinds = {tuple(site.sublayer for site in decision.sites) for decision in limits.space.decisions}
    one_kind = len(kinds) == 1 and len(kinds.pop()) == 1
    return evenness(limits.space) if one_kind else _evenness_by_cost(limits)


def evenness(space: Space) -> FloatArray:
    """[N, K] what options are worth where a unit is worth what its layer is short of whole, relatively."""
    return cumulative_worth(space, [1.0 - row / max(row[-1], 1) for row in space.units])


def _evenness_by_cost(limits: Limits) -> FloatArray:
    """As `evenness`, counted in what units cost."""
    worth = np.zeros(limits.table.exists.shape)
    for row, units, costs in zip(worth, limits.space.units, limits.binding.costs, strict=True):
        short = 1.0 - units[:-1] / max(units[-1], 1)
        np.cumsum(short * np.diff(costs), out=row[1 : len(units)])
    return worth


def cumulative_worth(space: Space, unit_worth: list[FloatArray]) -> FloatArray:
    """[N, K] worth of options if the units above each option are worth `unit_worth` [N][K] each. For ladders."""
    worth = np.zeros((space.num_decisions, int(space.counts.max())))
    for row, units, each in zip(worth, space.units, unit_worth, strict=True):
        np.cumsum(each[:-1] * np.diff(units), out=row[1 : len(units)])
    return worth


def _widest_equal(limits: Limits) -> IntArray:
    """[N] the options at the greatest retention that fits: the narrowest, if none does."""
    widest = np.array([row[-1] for row in limits.space.units], dtype=np.float64)
    retentions = np.unique(np.concatenate([row / max(row[-1], 1) for row, _ in limits.space.ladders]))
    low, high = 0, len(retentions)
    best = np.zeros(limits.space.num_decisions, dtype=np.int64)
    while low < high:
        middle = (low + high) // 2
        # A little more than the quotient of two integers, so that it gives the first of them back.
        indices = limits.space.at_most(widest * retentions[middle] + 1e-6)
        if (limits.slack(indices) >= 0).all():
            best, low = indices, middle + 1
        else:
            high = middle
    return best
