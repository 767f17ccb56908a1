"""The choice of least summed loss under several limits: the multiple-choice knapsack of several dimensions.

The dynamic program (`allocators.additive_dp`) knows one limit. Here decisions are made one after the other, and of the
partial choices (labels) the most promising are kept: those whose loss so far and a lower bound of what the other
decisions will add are least. The bound is Lagrangian (Fisher, Management Science 27, 1981): at a price on what is left
of each limit, every decision is made by itself. A label whose bound is not under the best sum that is known is dropped,
so the answer is the best of the candidates unless more labels are left than are kept.

Letters: J limits, N decisions, K options, C candidates of a decision, B labels.
"""

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limits

NUM_LABELS = 4096
"""Over all decisions: with more of them there is more to do for each label, and the bound is nearer."""

THRIFT = (1.0, 2.0, 4.0)
"""Labels are kept by the bound, and as many each by what it would say at prices so many times as high: where stairs are
coarse the bound is far off, and those with the most left over are the only ones that end within all limits."""

NUM_FINALISTS = 8
"""Of the last labels: those that are filled up and compared."""

NUM_PRICES = 60
"""Steps of the search for prices, at most."""

NUM_OPTIONS = 512
"""Over all decisions: of spaces with more options, those at 1, 2, 4... places from the best and the core are tried."""

FEW_OPTIONS = 32
"""Of a decision: all of so many are tried."""

NUM_CORE = 16
NUM_EDGES = 16
"""Of a decision, at most."""

MAX_ROUNDS = 8
TOLERANCE = 1e-12
"""Of the greatest loss: less is rounding, and could go on for ever."""


def least_within(limits: Limits, loss: FloatArray, start: IntArray, marks: IntArray) -> IntArray:
    """The tight choice [N] within `limits` of the least summed `loss` found.

    First among `marks` and the edges of stairs, then in rounds among options around the best, until none is better.

    Args:
        limits: what has to be met.
        loss: [N, K] of each option.
        start: [N] a tight choice; the answer is never worse.
        marks: [N, M] options to begin with, besides those.
    """
    decisions = np.arange(len(loss))
    best, least = start, float(loss[decisions, start].sum())
    smallest_gain = TOLERANCE * float(np.abs(loss[limits.table.exists]).max())
    marks = np.concatenate([marks, _edges(limits)], axis=1)
    candidates = np.concatenate([marks, best[:, None]], axis=1)
    for turn in range(MAX_ROUNDS):
        found, prices = _most_promising(limits, loss, candidates, least - smallest_gain)
        filled = [limits.fit(indices, -loss) for indices in found]
        sums = [float(loss[decisions, indices].sum()) for indices in filled]
        if sums and min(sums) < least - smallest_gain:
            best, least = filled[int(np.argmin(sums))], min(sums)
        elif turn:
            break
        candidates = np.concatenate([marks, _near(limits, loss, best, prices)], axis=1)
    return best


def _edges(limits: Limits) -> IntArray:
    """[N, NUM_EDGES] where the next option costs more than twice the usual of its decision, the dearest first; or 0."""
    edges = np.zeros((limits.space.num_decisions, NUM_EDGES), dtype=np.int64)
    for n, row in enumerate(edges):
        steps = np.stack([np.diff(limit.costs[n]) for limit in limits.limits])
        relative = (steps * steps.shape[1] / np.maximum(steps.sum(axis=1, keepdims=True), 1)).max(axis=0, initial=0)
        dearest = np.argsort(-relative, kind="stable")[:NUM_EDGES]
        dearest = dearest[relative[dearest] > 2]
        row[: len(dearest)] = dearest
    return edges


def _near(limits: Limits, loss: FloatArray, indices: IntArray, prices: FloatArray) -> IntArray:
    """[N, C] the options to try next: all, if those are few.

    Else those around `indices` [N], and those that lose least at `prices` [J] of the limits, the core of the problem
    (Balas and Zemel, Operations Research 28, 1980): on ladders the first find the way, without an order the others.
    """
    last = limits.space.counts - 1
    most = int(last.max())
    if most < FEW_OPTIONS or len(last) * (most + 1) <= NUM_OPTIONS:
        near = np.repeat(np.arange(most + 1)[None], len(last), axis=0)
    else:
        steps = 2 ** np.arange(most.bit_length())
        around = indices[:, None] + np.concatenate([-steps, [0], steps])
        exists = limits.table.exists
        paid = np.tensordot(prices, np.where(exists, limits.table.excess, 0), axes=1)
        core = np.argpartition(np.where(exists, loss + paid, np.inf), NUM_CORE - 1, axis=1)[:, :NUM_CORE]
        near = np.concatenate([around, core], axis=1)
    return np.clip(near, 0, last[:, None])


def _most_promising(
    limits: Limits, loss: FloatArray, candidates: IntArray, below: float
) -> tuple[list[IntArray], FloatArray]:
    """Choices [N] among `candidates` [N, C] of a sum below `below`, the least first, `NUM_FINALISTS` at most; and the
    prices [J] of the limits, in loss per unit."""
    candidates = np.sort(candidates, axis=1)
    decisions = np.arange(len(candidates))
    losses = loss[decisions[:, None], candidates]
    losses[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = np.inf
    # Costs count from the cheapest candidates up: what these leave is for all decisions to share.
    costs = limits.table.excess[:, decisions[:, None], candidates]
    cheapest = costs.min(axis=2)
    spare = limits.spare - cheapest.sum(axis=1)
    costs = costs - cheapest[:, :, None]
    losses[(costs > spare[:, None, None]).any(axis=0)] = np.inf
    unit = np.maximum(spare, 1)
    shares = costs / unit[:, None, None]
    prices = _prices(losses, shares, spare / unit, below)
    free, priced = _still_to_come(losses), _still_to_come(losses + np.tensordot(prices, shares, axes=1))

    most = max(NUM_LABELS // len(decisions) // len(THRIFT), 1)
    sums, left = np.zeros(1), spare[None]
    chosen = np.zeros((1, 0), dtype=np.int64)
    for n in decisions:
        after = left[:, None] - costs[:, n].T  # [B, C, J]
        total = sums[:, None] + losses[n]
        # What is left is worth nothing behind the last decision.
        worth = after @ (prices / unit) if n < decisions[-1] else np.zeros(total.shape)
        bound = total + np.maximum(free[n + 1], priced[n + 1] - worth)
        kept = np.flatnonzero((after >= 0).all(axis=2) & (bound < below))
        if len(kept) > most * len(THRIFT):
            keys = [(total - thrift * worth).ravel()[kept] for thrift in THRIFT]
            kept = kept[np.unique([np.argpartition(key, most - 1)[:most] for key in keys])]
        label, candidate = np.divmod(kept, candidates.shape[1])
        sums, left = total[label, candidate], after[label, candidate]
        chosen = np.concatenate([chosen[label], candidates[n, candidate][:, None]], axis=1)
    return list(chosen[np.argsort(sums, kind="stable")[:NUM_FINALISTS]]), prices / unit


def _still_to_come(losses: FloatArray) -> FloatArray:
    """[N + 1] the least that decisions n.. of `losses` [N, C] add; 0 at the end."""
    least: FloatArray = np.append(losses.min(axis=1)[::-1].cumsum()[::-1], 0.0)
    return least


def _prices(losses: FloatArray, shares: FloatArray, room: FloatArray, above: float) -> FloatArray:
    """[J] prices of the limits' `shares` [J, N, C], of `room` [J], at which the Lagrangian bound is the highest found.

    Subgradient ascent with Polyak's steps towards `above`, a sum that is known.
    """
    decisions = np.arange(len(losses))
    prices, best = np.zeros(len(shares)), np.zeros(len(shares))
    highest, pace, waited = -np.inf, 1.0, 0
    for _ in range(NUM_PRICES):
        priced = losses + np.tensordot(prices, shares, axes=1)
        choice = priced.argmin(axis=1)
        bound = float(priced[decisions, choice].sum() - prices @ room)
        waited += 1
        if bound > highest:
            best, highest, waited = prices, bound, 0
        elif waited == 4:
            pace, waited = pace / 2, 0
        slope = shares[:, decisions, choice].sum(axis=1) - room
        slope[(prices <= 0) & (slope < 0)] = 0.0
        length = float(slope @ slope)
        if length == 0.0 or highest >= above:
            break
        prices = np.maximum(prices + pace * (above - bound) / length * slope, 0.0)
    return best
