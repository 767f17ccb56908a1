"""The one greedy: a choice is made to meet its limits by giving up what is worth least, then filled up by what is worth
most.

Both by what a move is worth for what it costs: of the limit that is exceeded most while something has to go, and of the
slack that is left under every limit while there is some. Moves are to any option of one decision, so options need no
order.
"""

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.planning.cost_table import CostTable

_NO_COST = 1e-12
"""Share of the slack that what costs nothing counts as."""


def fit(table: CostTable, spare: IntArray, choice: IntArray, worth: FloatArray) -> IntArray:
    """[N] a choice near `choice` [N] whose excess under `table` is at most `spare` [J], and to which nothing can be
    added: no dearer option of any single decision fits.

    `worth` [N, K] is what each option is worth. Of moves that are worth the same, the first decision's is taken.
    """
    chosen = choice.copy()
    _shrink(table, spare, chosen, worth)
    _fill(table, spare, chosen, worth)
    return chosen


def _shrink(table: CostTable, spare: IntArray, chosen: IntArray, worth: FloatArray) -> None:
    """Go to cheaper options until nothing is exceeded: those that lose least for what they free of what is needed."""
    decisions = np.arange(table.num_decisions)
    span = np.maximum(table.most_from[0], 1)
    slack = spare - table.excess[:, decisions, chosen].sum(axis=1)
    while (slack < 0).any():
        worst = int(np.argmin(slack / span))
        freed = table.excess[:, decisions, chosen][:, :, None] - table.excess
        # A move may free less of another limit than nothing only while it stays cheaper as a whole: else two moves
        # could undo each other for ever.
        cheaper = (freed >= 0).all(axis=0) & (freed[worst] > 0)
        if not cheaper.any():
            cheaper = freed[worst] > 0
        lost = worth[decisions, chosen][:, None] - worth
        # What is freed beyond what is needed is worth nothing.
        useful = np.minimum(freed[worst], -slack[worst])
        price = np.where(cheaper, lost / np.maximum(useful, 1), np.inf)
        n, k = divmod(int(np.argmin(price)), price.shape[1])
        slack += freed[:, n, k]
        chosen[n] = k


def _fill(table: CostTable, spare: IntArray, chosen: IntArray, worth: FloatArray) -> None:
    """Go to dearer options while any fits: those that are worth most for what they take of the slack."""
    decisions = np.arange(table.num_decisions)
    now = table.excess[:, decisions, chosen]
    slack = spare - now.sum(axis=1)
    more = table.excess - now[:, :, None]
    # Slack only shrinks: what does not fit now never will.
    dearer = (more >= 0).all(axis=0) & (more > 0).any(axis=0) & (more <= slack[:, None, None]).all(axis=0)
    n, k = np.nonzero(dearer)
    costs, gains = table.excess[:, n, k], worth[n, k]
    while len(n):
        taken = costs - now[:, n]
        able = (taken >= 0).all(axis=0) & (taken > 0).any(axis=0) & (taken <= slack[:, None]).all(axis=0)
        n, k, costs, gains, taken = n[able], k[able], costs[:, able], gains[able], taken[:, able]
        if not len(n):
            return
        gained = gains - worth[n, chosen[n]]
        share = (taken / (slack[:, None] + 1)).max(axis=0) + _NO_COST
        best = int(np.argmax(gained / share))
        slack -= taken[:, best]
        chosen[n[best]] = k[best]
        now[:, n[best]] = costs[:, best]
