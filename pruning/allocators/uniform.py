"""The same retention in every layer: the baseline that every other allocation has to beat."""

from dataclasses import replace

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limits
from pruning.planning.space import Options, Space


def uniform_choice(limits: Limits) -> IntArray:
    """[N] the greatest equal retention that meets `limits`; then what still fits, narrow layers first. For ladders, and
    for decisions on several sites that keep as much of each, relatively.

    Where bits may change, the most bits everywhere at which all units fit; where even the fewest do not, the greatest
    equal retention in those."""
    if limits.space.has_bits:
        return _equal_bits(limits)
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


def _equal_bits(limits: Limits) -> IntArray:
    """[N] for spaces with bits: what is left over goes to more units in the fewest bits, or to more bits of all."""
    kept = []
    for decision, floor in zip(limits.space.decisions, limits.table.floor, strict=True):
        options = decision.options[0]
        bits = np.array([x.bits or 16 for x in options])
        orderly = (options.units == options.units.max()) | (bits == bits[options.units > 0].min())
        orderly[floor] = True
        kept.append(np.flatnonzero(orderly))
    decisions = tuple(x.take(k) for x, k in zip(limits.space.decisions, kept, strict=True))
    of = (replace(x, costs=tuple(row[k] for row, k in zip(x.costs, kept, strict=True))) for x in limits.limits)
    orderly_limits = Limits(Space(decisions, limits.space.dense), tuple(of))
    found = orderly_limits.fit(_most_equal(orderly_limits), _shortness_by_cost(orderly_limits))
    return np.array([k[index] for k, index in zip(kept, found, strict=True)])


def _shortness_by_cost(limits: Limits) -> FloatArray:
    """[N, K] as `_evenness_by_cost`, of options in any order: the sum of what is short of whole on the way to each."""
    worth = np.zeros(limits.table.exists.shape)
    for row, costs in zip(worth, limits.binding.costs, strict=True):
        share = costs / max(int(costs.max()), 1)
        row[: len(costs)] = costs * (1.0 - share / 2)
    return worth


def _most_equal(limits: Limits) -> IntArray:
    """[N] options of equal bits and equal retention, as near as decisions have them; the cheapest if none fits."""
    space = limits.space
    known = {bits or 16 for x in space.decisions for bits in x.options[0].bits or (None,)}
    retentions = np.unique(np.concatenate([row / row.max() for row in space.units]))[::-1]
    equal = [(1.0, bits) for bits in sorted(known, reverse=True)] + [(float(r), min(known)) for r in retentions[1:]]
    for retention, bits in equal:
        choice = np.array([_nearest(x.options[0], retention, bits) for x in space.decisions])
        if (limits.slack(choice) >= 0).all():
            return choice
    return limits.table.floor


def _nearest(options: Options, retention: float, bits: int) -> int:
    """Of the options that keep no more than `retention`, those that keep most; of these, that of the bits nearest to
    `bits` from above, which all have."""
    units = options.units
    most = int(units[units <= units.max() * retention + 1e-6].max(initial=int(units.min())))
    of_width = [k for k in range(len(options)) if units[k] == most]
    own = {k: (options[k].bits or 16) for k in of_width}
    return min(of_width, key=lambda k: (own[k] < bits, abs(own[k] - bits)))


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
