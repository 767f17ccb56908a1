"""The same retention in every layer: the baseline that every other allocation has to beat."""

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limits
from pruning.planning.space import Options, Space


def uniform_choice(limits: Limits) -> IntArray:
    """[N] the greatest equal retention that meets `limits`; then what still fits, narrow layers first. For ladders, and
    for decisions on several sites that keep as much of each, relatively.

    Where bits may change, the greatest equal retention at which any bits fit, in the most bits that do: all units in
    fewer bits before fewer units, and bits as they are under limits that bits do not help to meet. Where densities may,
    the greatest equal density.
    """
    if limits.space.has_density:
        return limits.fit(_equal_densities(limits), worth_of_costs(limits))
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


def _equal_densities(limits: Limits) -> IntArray:
    """[N] the options of the greatest equal density that fits, all decisions having the same; the least, if none
    does."""
    choices = np.arange(int(limits.space.counts.min()))[:, None].repeat(limits.space.num_decisions, axis=1)
    fitting = np.flatnonzero((limits.table.spent(choices) <= limits.spare).all(axis=1))
    found: IntArray = choices[fitting[-1] if len(fitting) else 0]
    return found


def _equal_bits(limits: Limits) -> IntArray:
    """[N] for spaces with bits: what is left over goes to more units in the same bits, or to more bits of all units."""
    choice, bits = _most_equal(limits)
    kept = []
    for decision, chosen, floor in zip(limits.space.decisions, choice, limits.table.floor, strict=True):
        options = decision.options[0]
        own = _bits_of(options)
        orderly = (own == bits) | ((options.units == options.units.max()) & (own > bits))
        orderly[[chosen, floor]] = True
        kept.append(np.flatnonzero(orderly))
    orderly_limits = limits.among(kept)
    start = np.array([np.searchsorted(k, own) for k, own in zip(kept, choice, strict=True)])
    found = orderly_limits.fit(start, worth_of_costs(orderly_limits))
    return np.array([k[index] for k, index in zip(kept, found, strict=True)])


def worth_of_costs(limits: Limits) -> FloatArray:
    """[N, K] as `_evenness_by_cost`, of options in any order: the sum of what is short of whole on the way to each."""
    worth = np.zeros(limits.table.exists.shape)
    for row, costs in zip(worth, limits.binding.costs, strict=True):
        share = costs / max(int(costs.max()), 1)
        row[: len(costs)] = costs * (1.0 - share / 2)
    return worth


def _most_equal(limits: Limits) -> tuple[IntArray, int]:
    """[N] options of the greatest equal retention that fits, as near as decisions have it, in the most bits in which it
    does, and these bits; the cheapest options if none fits."""
    space = limits.space
    all_bits = sorted({int(b) for x in space.decisions for b in np.unique(_bits_of(x.options[0]))}, reverse=True)
    retentions = np.unique(np.concatenate([row / row.max() for row in space.units]))
    best, found, of_bits = -1, limits.table.floor, all_bits[-1]
    for bits in all_bits:
        choices = np.stack([_nearest(x.options[0], retentions, bits) for x in space.decisions], axis=1)  # [R, N]
        fitting = np.flatnonzero((limits.table.spent(choices) <= limits.spare).all(axis=1))
        if len(fitting) and fitting[-1] > best:
            best, found, of_bits = int(fitting[-1]), choices[fitting[-1]], bits
    return found, of_bits


def _nearest(options: Options, retentions: FloatArray, bits: int) -> IntArray:
    """[R] for each of `retentions` the option that keeps most of those that keep no more than that; of equal units, in
    the bits nearest to `bits` from above, which all have."""
    own = _bits_of(options)
    order = np.lexsort((np.abs(own - bits), own < bits, options.units))
    widths, first = np.unique(options.units[order], return_index=True)
    # A little more than the quotient of two integers, so that it gives the first of them back.
    places = np.searchsorted(widths, widths[-1] * retentions + 1e-6, side="right") - 1
    found: IntArray = order[first][np.maximum(places, 0)]
    return found


def _bits_of(options: Options) -> IntArray:
    """[K] of their weights; 16 where they are as they are."""
    return np.array([x.bits or 16 for x in options], dtype=np.int64)


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
