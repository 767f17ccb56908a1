"""The one greedy: a choice is made to meet its limits by giving up what is worth least, then filled up by what is worth
most.

Both by what a move is worth for what it costs: of the limit that is exceeded most while something has to go, and of the
slack that is left under every limit while there is some. A move is to the next option of one decision on its frontier:
options that are worth no less than any cheaper one. So options need no order, and a long way is gone in steps that are
weighed one by one. What the frontier leaves over, other options use up.
"""

import numpy as np

from pruning.arrays import BoolArray, FloatArray, IntArray
from pruning.planning.cost_table import CostTable

_NO_COST = 1e-12
"""Share of the slack that what costs nothing counts as."""


def fit(table: CostTable, spare: IntArray, choice: IntArray, worth: FloatArray) -> IntArray:
    """[N] a choice near `choice` [N] whose excess under `table` is at most `spare` [J], and to which nothing can be
    added: no option above that of any single decision fits, see `CostTable.above`.

    `worth` [N, K] is what each option is worth. Of moves that are worth the same, the first decision's is taken. It
    ends: moves down make the summed excess less, and moves up make it more, or keep it and go to later options.
    """
    chosen = choice.copy()
    ranked = np.full(table.exists.shape, -np.inf)
    ranked[table.exists] = worth[table.by_cost]
    frontier = (ranked == np.maximum.accumulate(ranked, axis=1))[table.exists]
    _shrink(table, spare, chosen, worth, frontier)
    _fill(table, spare, chosen, worth, frontier)
    if not frontier.all():
        _fill(table, spare, chosen, worth, np.ones_like(frontier))
    return chosen


def _shrink(table: CostTable, spare: IntArray, chosen: IntArray, worth: FloatArray, frontier: BoolArray) -> None:
    """Go to cheaper options until nothing is exceeded: those that lose least for what they free of what is needed."""
    now = table.excess[:, np.arange(table.num_decisions), chosen]
    slack = spare - now.sum(axis=1)
    if (slack >= 0).all():
        return
    span = np.maximum(table.most_from[0], 1)
    n, k = table.by_cost
    costs = table.excess[:, n, k]
    while (slack < 0).any():
        worst = int(np.argmin(slack / span))
        freed = now[:, n] - costs
        # Never what frees less than nothing of another limit: two moves could undo each other for ever. While a limit
        # is exceeded there is always a move: to a decision's floor.
        cheaper = (freed >= 0).all(axis=0) & (freed[worst] > 0)
        able = np.flatnonzero(cheaper & frontier)
        if not len(able):
            able = np.flatnonzero(cheaper)
        able = able[np.append(n[able][1:] != n[able][:-1], True)]  # the dearest of each decision
        lost = worth[n[able], chosen[n[able]]] - worth[n[able], k[able]]
        best = able[np.argmin(lost / freed[worst, able])]
        slack += freed[:, best]
        chosen[n[best]] = k[best]
        now[:, n[best]] = costs[:, best]


def _fill(table: CostTable, spare: IntArray, chosen: IntArray, worth: FloatArray, among: BoolArray) -> None:
    """Go to options above, `among` all, while any fits: those that are worth most for what they take of the slack."""
    now = table.excess[:, np.arange(table.num_decisions), chosen]
    slack = spare - now.sum(axis=1)
    fits = (table.excess - now[:, :, None] <= slack[:, None, None]).all(axis=0)
    n, k = table.by_cost
    able = among & (table.above(chosen) & fits)[n, k]
    while able.any():
        n, k = n[able], k[able]
        costs = table.excess[:, n, k]
        _fill_while_next_fit(n, k, costs, slack, chosen, now, worth)
        # What does not fit now never will, and what is not above an option is above none that are above it.
        able = _fits_above(costs - now[:, n], k > chosen[n], slack)


def _fill_while_next_fit(
    n: IntArray, k: IntArray, costs: IntArray, slack: IntArray, chosen: IntArray, now: IntArray, worth: FloatArray
) -> None:
    """Go on among options `k` of decisions `n` that cost `costs` [J, M], decision by decision and the cheapest first,
    until the next option of a decision does not fit; `slack`, `chosen` and `now`, its costs, go along.
    """
    first = np.flatnonzero(np.append(True, n[1:] != n[:-1]))  # the cheapest of each decision
    end = np.append(first[1:], len(n))
    while len(first):
        decisions, options = n[first], k[first]
        present = chosen[decisions]
        taken = costs[:, first] - now[:, decisions]
        if not _fits_above(taken, options > present, slack).all():
            return
        gained = worth[decisions, options] - worth[decisions, present]
        share = (taken / (slack[:, None] + 1)).max(axis=0) + _NO_COST
        best = int(np.argmax(gained / share))
        slack -= taken[:, best]
        chosen[decisions[best]] = options[best]
        now[:, decisions[best]] = costs[:, first[best]]
        first[best] += 1
        if first[best] == end[best]:
            first, end = np.delete(first, best), np.delete(end, best)


def _fits_above(taken: IntArray, later: BoolArray, slack: IntArray) -> BoolArray:
    """[M] whether options that take `taken` [J, M] more are above what is chosen, see `CostTable.above`, and fit."""
    fits: BoolArray = ((taken >= 0) & (taken <= slack[:, None])).all(axis=0) & (taken.any(axis=0) | later)
    return fits
