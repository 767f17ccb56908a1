"""The one greedy: a choice is made to meet its limits by giving up what is worth least, then filled up by what is worth
most.

Both by what a move is worth for what it costs: of the limit that is exceeded most while something has to go, and of the
slack that is left under every limit while there is some. A move is to the next option of one decision on its frontier:
options that are worth more than every cheaper one. So options need no order, and a long way is gone in steps that are
weighed one by one. What the frontier leaves over, other options use up.
"""

import numpy as np

from pruning.arrays import BoolArray, FloatArray, IntArray
from pruning.planning.cost_table import CostTable

_NO_COST = 1e-12
"""Share of the slack that what costs nothing counts as."""


def fit(table: CostTable, spare: IntArray, choice: IntArray, worth: FloatArray) -> IntArray:
    """[N] a choice near `choice` [N] whose excess under `table` is at most `spare` [J], and to which nothing can be
    added: no dearer option of any single decision fits.

    `worth` [N, K] is what each option is worth. Of moves that are worth the same, the first decision's is taken.
    """
    chosen = choice.copy()
    size = (table.excess / np.maximum(spare, 1)[:, None, None]).sum(axis=0)  # [N, K] of all limits together
    size[~table.exists] = np.inf
    frontier = _frontier(size, worth)
    _shrink(table, spare, chosen, worth, size, frontier)
    _fill(table, spare, chosen, worth, size, frontier)
    _fill(table, spare, chosen, worth, size, table.exists)
    return chosen


def _frontier(size: FloatArray, worth: FloatArray) -> BoolArray:
    """[N, K] no option of the decision is smaller and worth more."""
    order = np.argsort(size, axis=1, kind="stable")
    ordered = np.take_along_axis(np.where(np.isinf(size), -np.inf, worth), order, axis=1)
    best = np.maximum.accumulate(ordered, axis=1)
    frontier = np.empty(size.shape, dtype=np.bool_)
    np.put_along_axis(frontier, order, ordered >= best, axis=1)
    return frontier & ~np.isinf(size)


def _shrink(
    table: CostTable,
    spare: IntArray,
    chosen: IntArray,
    worth: FloatArray,
    size: FloatArray,
    frontier: BoolArray,
) -> None:
    """Go to smaller options until nothing is exceeded: those that lose least for what they free.

    Every move is to an option that is cheaper or as cheap under every limit, where there is one, and smaller: so it
    ends, at the floors at the latest.
    """
    decisions = np.arange(table.num_decisions)
    span = np.maximum(table.most_from[0], 1)
    slack = spare - table.excess[:, decisions, chosen].sum(axis=1)
    while (slack < 0).any():
        worst = int(np.argmin(slack / span))
        freed = table.excess[:, decisions, chosen][:, :, None] - table.excess
        cheaper = (freed[worst] > 0) & (freed >= 0).all(axis=0)
        able = cheaper & frontier if (cheaper & frontier).any() else cheaper
        nearest = np.where(able, size, -np.inf).argmax(axis=1)
        lost = worth[decisions, chosen] - worth[decisions, nearest]
        ratio = lost / np.maximum(freed[worst, decisions, nearest], 1)
        n = int(np.argmin(np.where(able.any(axis=1), ratio, np.inf)))
        slack += freed[:, n, nearest[n]]
        chosen[n] = nearest[n]


def _fill(
    table: CostTable,
    spare: IntArray,
    chosen: IntArray,
    worth: FloatArray,
    size: FloatArray,
    among: BoolArray,
) -> None:
    """Go to dearer options `among` all while any fits: those that are worth most for what they take of the slack."""
    decisions = np.arange(table.num_decisions)
    now = table.excess[:, decisions, chosen]
    slack = spare - now.sum(axis=1)
    # Slack only shrinks: what does not fit now never will.
    more = table.excess - now[:, :, None]
    n, k = np.nonzero(among & (more <= slack[:, None, None]).all(axis=0))
    order = np.lexsort((size[n, k], n))
    n, k = n[order], k[order]
    costs = table.excess[:, n, k]
    while True:
        taken = costs - now[:, n]
        able = (taken >= 0).all(axis=0) & (taken > 0).any(axis=0) & (taken <= slack[:, None]).all(axis=0)
        if not able.any():
            return
        n, k, costs, taken = n[able], k[able], costs[:, able], taken[:, able]
        first = np.flatnonzero(np.append(True, n[1:] != n[:-1]))  # the smallest of each decision
        gained = worth[n[first], k[first]] - worth[n[first], chosen[n[first]]]
        share = (taken[:, first] / (slack[:, None] + 1)).max(axis=0) + _NO_COST
        best = first[np.argmax(gained / share)]
        slack -= taken[:, best]
        chosen[n[best]] = k[best]
        now[:, n[best]] = costs[:, best]
