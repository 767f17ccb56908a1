"""One width a layer, of least summed loss, under several limits: the multiple-choice knapsack of several dimensions.

The dynamic program (`additive_dp`) knows one limit. Here layers are decided one after the other, and of the partial
decisions (labels) the most promising are kept: those whose loss so far and a lower bound of what the other layers will
add are least. The bound is Lagrangian (Fisher, Management Science 27, 1981): at a price on what is left of each limit,
every layer chooses for itself. A label whose bound is not under the best sum that is known is dropped, so the answer is
the best of the candidates unless more labels are left than are kept.

Letters: J limits, L decoder layers, N allowed widths, C candidates of a layer, B labels.
"""

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limits

NUM_LABELS = 4096
"""Over all layers: with more of them there is more to do for each label, and the bound is nearer."""

THRIFT = (1.0, 2.0, 4.0)
"""Labels are kept by the bound, and as many each by what it would say at prices so many times as high: where stairs are
coarse the bound is far off, and those with the most left over are the only ones that end within all limits."""

NUM_FINALISTS = 8
"""Of the last labels: those that are filled up and compared."""

NUM_PRICES = 60
"""Steps of the search for prices, at most."""

NUM_WIDTHS = 512
"""Over all layers: of models with more allowed widths, those at 1, 2, 4... steps from the best are tried."""

NUM_EDGES = 16
"""Of a layer, at most."""

MAX_ROUNDS = 8
TOLERANCE = 1e-12
"""Of the greatest loss: less is rounding, and could go on for ever."""


def least_within(limits: Limits, loss: FloatArray, levels: IntArray, start: IntArray) -> IntArray:
    """Indices [L] of allowed widths that meet `limits`, of the least summed `loss` found; none can grow by a step.

    First among `levels` and the edges of stairs, then in rounds among widths around the best, until none is better.

    Args:
        limits: what has to be met.
        loss: [L, N] of each allowed width.
        levels: [L, K] indices of widths to begin with.
        start: [L] indices that meet `limits`, and of which none can grow; the answer is never worse.
    """
    layers = np.arange(len(loss))
    best, least = start, float(loss[layers, start].sum())
    smallest_gain = TOLERANCE * float(loss.max())
    marks = np.concatenate([levels, _edges(limits)], axis=1)
    candidates = np.concatenate([marks, best[:, None]], axis=1)
    for turn in range(MAX_ROUNDS):
        found = _most_promising(limits, loss, candidates, least - smallest_gain)
        filled = [limits.fill(indices, -loss) for indices in found]
        sums = [float(loss[layers, indices].sum()) for indices in filled]
        if sums and min(sums) < least - smallest_gain:
            best, least = filled[int(np.argmin(sums))], min(sums)
        elif turn:
            break
        candidates = np.concatenate([marks, _around(limits, best)], axis=1)
    return best


def _edges(limits: Limits) -> IntArray:
    """[L, NUM_EDGES] where a step up costs more than twice the usual of its layer, the dearest first; padded with 0."""
    edges = np.zeros((limits.steps.num_layers, NUM_EDGES), dtype=np.int64)
    for layer, row in enumerate(edges):
        steps = np.stack([np.diff(limit.costs[layer]) for limit in limits.limits])
        relative = (steps * steps.shape[1] / np.maximum(steps.sum(axis=1, keepdims=True), 1)).max(axis=0, initial=0)
        dearest = np.argsort(-relative, kind="stable")[:NUM_EDGES]
        dearest = dearest[relative[dearest] > 2]
        row[: len(dearest)] = dearest
    return edges


def _around(limits: Limits, indices: IntArray) -> IntArray:
    """[L, C] the widths to try around `indices` [L]: all, if those are few."""
    last = np.array([len(row) for row in limits.steps.widths]) - 1
    most = int(last.max())
    if len(last) * (most + 1) <= NUM_WIDTHS:
        around = np.repeat(np.arange(most + 1)[None], len(last), axis=0)
    else:
        steps = 2 ** np.arange(most.bit_length())
        around = indices[:, None] + np.concatenate([-steps, [0], steps])
    return np.clip(around, 0, last[:, None])


def _most_promising(limits: Limits, loss: FloatArray, candidates: IntArray, below: float) -> list[IntArray]:
    """Choices [L] among `candidates` [L, C] of a sum below `below`, the least first; `NUM_FINALISTS` at most."""
    candidates = np.sort(candidates, axis=1)
    layers = np.arange(len(candidates))
    losses = loss[layers[:, None], candidates]
    losses[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = np.inf
    # Costs count from the narrowest candidates up: what these leave is for all layers to share.
    costs = limits.table[:, layers[:, None], candidates]
    spare = limits.room - costs[:, :, 0].sum(axis=1)
    costs = costs - costs[:, :, :1]
    losses[(costs > spare[:, None, None]).any(axis=0)] = np.inf
    unit = np.maximum(spare, 1)
    shares = costs / unit[:, None, None]
    prices = _prices(losses, shares, spare / unit, below)
    free, priced = _still_to_come(losses), _still_to_come(losses + np.tensordot(prices, shares, axes=1))

    most = max(NUM_LABELS // len(layers) // len(THRIFT), 1)
    sums, left = np.zeros(1), spare[None]
    chosen = np.zeros((1, 0), dtype=np.int64)
    for layer in layers:
        after = left[:, None] - costs[:, layer].T  # [B, C, J]
        total = sums[:, None] + losses[layer]
        # What is left is worth nothing behind the last layer.
        worth = after @ (prices / unit) if layer < layers[-1] else np.zeros(total.shape)
        bound = total + np.maximum(free[layer + 1], priced[layer + 1] - worth)
        kept = np.flatnonzero((after >= 0).all(axis=2) & (bound < below))
        if len(kept) > most * len(THRIFT):
            keys = [(total - thrift * worth).ravel()[kept] for thrift in THRIFT]
            kept = kept[np.unique([np.argpartition(key, most - 1)[:most] for key in keys])]
        label, candidate = np.divmod(kept, candidates.shape[1])
        sums, left = total[label, candidate], after[label, candidate]
        chosen = np.concatenate([chosen[label], candidates[layer, candidate][:, None]], axis=1)
    return list(chosen[np.argsort(sums, kind="stable")[:NUM_FINALISTS]])


def _still_to_come(losses: FloatArray) -> FloatArray:
    """[L + 1] the least that layers l.. of `losses` [L, C] add; 0 at the end."""
    least: FloatArray = np.append(losses.min(axis=1)[::-1].cumsum()[::-1], 0.0)
    return least


def _prices(losses: FloatArray, shares: FloatArray, room: FloatArray, above: float) -> FloatArray:
    """[J] prices of the limits' `shares` [J, L, C], of `room` [J], at which the Lagrangian bound is the highest found.

    Subgradient ascent with Polyak's steps towards `above`, a sum that is known.
    """
    layers = np.arange(len(losses))
    prices, best = np.zeros(len(shares)), np.zeros(len(shares))
    highest, pace, waited = -np.inf, 1.0, 0
    for _ in range(NUM_PRICES):
        priced = losses + np.tensordot(prices, shares, axes=1)
        choice = priced.argmin(axis=1)
        bound = float(priced[layers, choice].sum() - prices @ room)
        waited += 1
        if bound > highest:
            best, highest, waited = prices, bound, 0
        elif waited == 4:
            pace, waited = pace / 2, 0
        slope = shares[:, layers, choice].sum(axis=1) - room
        slope[(prices <= 0) & (slope < 0)] = 0.0
        length = float(slope @ slope)
        if length == 0.0 or highest >= above:
            break
        prices = np.maximum(prices + pace * (above - bound) / length * slope, 0.0)
    return best
