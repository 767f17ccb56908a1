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
    frontier = _frontier(table, worth)
    _shrink(table, spare, chosen, worth, frontier)
    _fill(table, spare, chosen, worth, frontier)
    if not frontier[table.exists].all():
        _fill(table, spare, chosen, worth, table.exists)
    return chosen


def _frontier(table: CostTable, worth: FloatArray) -> BoolArray:
    """[N, K] which options are worth no less than any cheaper one of their decision."""
    ranked = np.take_along_axis(np.where(table.exists, worth, -np.inf), table.by_cost, axis=1)
    frontier = np.zeros(ranked.shape, dtype=np.bool_)
    np.put_along_axis(frontier, table.by_cost, ranked == np.maximum.accumulate(ranked, axis=1), axis=1)
    return frontier & table.exists


def _shrink(table: CostTable, spare: IntArray, chosen: IntArray, worth: FloatArray, frontier: BoolArray) -> None:
    """Go to cheaper options until nothing is exceeded: those that lose least for what they free of what is needed."""
    now = table.excess[:, np.arange(table.num_decisions), chosen]
    slack = spare - now.sum(axis=1)
    if (slack >= 0).all():
        return
    span = np.maximum(table.most_from[0], 1)
    k = table.by_cost.ravel()
    n = np.repeat(np.arange(table.num_decisions), len(k) // table.num_decisions)
    n, k = n[table.exists[n, k]], k[table.exists[n, k]]
    costs, frontier = table.excess[:, n, k], frontier[n, k]
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
    """Go to options above, `among` these [N, K], while any fits: those worth most for what they take of the slack."""
    now = table.excess[:, np.arange(table.num_decisions), chosen]
    slack = spare - now.sum(axis=1)
    # What does not fit now never will, and what is not above an option is above none that are above it.
    fits = (table.excess <= (now + slack[:, None])[:, :, None]).all(axis=0)
    n, k = np.nonzero(among & fits & table.above(chosen))
    if not len(n):
        return
    order = np.lexsort((table.shares[n, k], n))
    n, k = n[order], k[order]
    costs, worths = table.excess[:, n, k], worth[n, k]

    def able(start: int, end: int) -> int:
        """The first candidate of `start`.. that is above its decision's option, and fits; `end` if none is."""
        taken = costs[:, start:end] - now[:, n[start:end]]
        above = (taken >= 0).all(axis=0) & ((taken > 0).any(axis=0) | (k[start:end] > chosen[n[start:end]]))
        found = np.flatnonzero(above & (taken <= slack[:, None]).all(axis=0))
        return start + int(found[0]) if len(found) else end

    # Of each decision: the cheapest candidate that is left, and where its candidates end.
    first = np.flatnonzero(np.append(True, n[1:] != n[:-1]))
    ends = np.append(first[1:], len(n))
    while len(first):
        taken = costs[:, first] - now[:, n[first]]
        passed = np.flatnonzero((taken > slack[:, None]).any(axis=0))
        if not len(passed):
            share = (taken / (slack[:, None] + 1)).max(axis=0) + _NO_COST
            best = int(np.argmax((worths[first] - worth[n[first], chosen[n[first]]]) / share))
            slack -= taken[:, best]
            chosen[n[first[best]]] = k[first[best]]
            now[:, n[first[best]]] = costs[:, first[best]]
            passed = np.array([best])
        for i in passed:
            first[i] = able(first[i] + 1, ends[i])
        first, ends = first[first < ends], ends[first < ends]
