"""The one greedy: a choice is made to meet its limits by giving up what is worth least, then filled up by what is worth
most.

Both by what a move is worth for what it costs: of the limit that is exceeded most while something has to go, and of the
slack that is left under every limit while there is some. A move is to the next option of one decision on its frontier:
options that are worth no less than any cheaper one. So options need no order, and a long way is gone in steps that are
weighed one by one. What the frontier leaves over, other options use up, where those that cost more keep more: not where
bits may change, since half the units in 16 bits cost as much as all of them in 8, and may lose far more.
"""

import heapq

import numpy as np

from pruning.arrays import BoolArray, FloatArray, IntArray
from pruning.planning.cost_table import CostTable, fits_above

_NO_COST = 1e-12
"""Share of the slack that what costs nothing counts as."""


def fit(
    table: CostTable, spare: IntArray, choice: IntArray, worth: FloatArray, *, only_gains: bool = False
) -> IntArray:
    """[N] a choice near `choice` [N] whose excess under `table` is at most `spare` [J], and to which nothing can be
    added: no option above that of any single decision fits, see `CostTable.fitting_above`. With `only_gains`, none that
    is worth as much at least as what is chosen.

    `worth` [N, K] is what each option is worth. Of moves that are worth the same, the first decision's is taken. It
    ends: moves down make the summed excess less, and moves up make it more, or keep it and go to later options.
    """
    chosen = choice.copy()
    now = table.excess[:, np.arange(table.num_decisions), chosen]
    slack: IntArray = spare - now.sum(axis=1)
    if (slack < 0).any():
        _shrink(table, slack, now, chosen, worth)
    _fill(table, slack, now, chosen, worth, only_gains=only_gains)
    return chosen


def _shrink(table: CostTable, slack: IntArray, now: IntArray, chosen: IntArray, worth: FloatArray) -> None:
    """Go to cheaper options until nothing is exceeded: those that lose least for what they free of what is needed.

    `slack`, `chosen` and `now`, its costs, go along. Under each limit a heap knows the best move, and of each decision
    that is the dearest option that frees some of this limit, and less than nothing of none: two moves could undo each
    other for ever. Costs only fall, so an option that is passed over is so for ever, and all that is done is of the
    order of the options.
    """
    decisions = np.arange(table.num_decisions)
    n, k = table.by_cost
    frontier = _worth_no_less(n, worth[n, k], np.full(len(decisions), -np.inf))
    frontier[np.searchsorted(n, decisions)] = True  # floors, even where their worth is not a number
    n, k = n[frontier], k[frontier]
    first = np.searchsorted(n, decisions)
    costs = table.excess[:, n, k]
    cheaper = (costs <= now[:, n]).all(axis=0) & (costs < now[:, n])
    at = np.maximum.reduceat(np.where(cheaper, np.arange(len(n)), -1), first, axis=1).T.tolist()
    heaps: list[list[tuple[float, int, int, int]]] = [[] for _ in slack]
    options, prices = k.tolist(), costs.T.tolist()

    def offer(decision: int) -> None:
        paid, old = now[:, decision].tolist(), int(chosen[decision])
        for j, heap in enumerate(heaps):
            place = at[decision][j]
            while place >= first[decision] and not _frees(prices[place], paid, j):
                place -= 1
            at[decision][j] = place
            if place >= first[decision]:
                lost = float(worth[decision, old] - worth[decision, options[place]])
                heapq.heappush(heap, (lost / (paid[j] - prices[place][j]), decision, place, old))

    for decision in decisions.tolist():
        offer(decision)
    span = np.maximum(table.most_from[0], 1)
    while (slack < 0).any():
        # There always is a move: to a decision's floor.
        _, decision, place, old = heapq.heappop(heaps[int(np.argmin(slack / span))])
        if old != chosen[decision]:
            continue  # it was offered before this decision's last move
        slack += now[:, decision] - costs[:, place]
        chosen[decision] = options[place]
        now[:, decision] = costs[:, place]
        offer(decision)


def _frees(price: list[int], paid: list[int], j: int) -> bool:
    """Whether `price` [J] instead of `paid` [J] frees some of limit `j`, and less than nothing of none."""
    return price[j] < paid[j] and all(a <= b for a, b in zip(price, paid, strict=True))


def _fill(
    table: CostTable, slack: IntArray, now: IntArray, chosen: IntArray, worth: FloatArray, *, only_gains: bool
) -> None:
    """Go to options above while any fits: those that are worth most for what they take of the slack.

    First among those that are worth no less than what is chosen and than any cheaper one, then, unless `only_gains`,
    among all.
    """
    n, k = np.nonzero(table.fitting_above(chosen, slack))
    if not len(n):
        return
    n, k = table.cheapest_first(n, k)
    costs = table.excess[:, n, k]
    gains = _worth_no_less(n, worth[n, k], worth[np.arange(len(chosen)), chosen])
    for among in (gains,) if only_gains else (gains, np.ones_like(gains)):
        able = among
        # What does not fit now never will, and what is not above an option is above none that are above it.
        while (able := able & fits_above(costs - now[:, n], k > chosen[n], slack)).any():
            _fill_while_next_fit(n[able], k[able], costs[:, able], slack, chosen, now, worth)


def _worth_no_less(n: IntArray, worth: FloatArray, least: FloatArray) -> BoolArray:
    """[M] whether options of decisions `n`, in their order and the cheapest first, are worth no less than any before
    them of their decision, and than its `least` [N]; `worth` is theirs, [M].
    """
    place = np.arange(len(n)) - np.searchsorted(n, n)
    ranked = np.full((len(least), int(place.max()) + 2), -np.inf)
    ranked[:, 0] = least
    ranked[n, place + 1] = worth
    found: BoolArray = (ranked == np.maximum.accumulate(ranked, axis=1))[n, place + 1]
    return found


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
        if not fits_above(taken, options > present, slack).all():
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
