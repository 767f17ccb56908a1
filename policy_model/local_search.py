"""Steepest descent on the values over exchanges of levels: one layer goes up, another one down.

All L (L - 1) exchanges are looked at. The process's covariance is a product over layers, so what it says of raising i
and lowering j is one entry of one matrix product over the anchors. The regression of a pair is first taken as the sum
of its halves; the most promising ones are then judged in full.
Letters: J limits, L decoder layers, K levels, N anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy_model.costs import DecisionCosts
from pruning.arrays import BoolArray, FloatArray, IntArray
from values.basis import Float32Array
from values.kl_floor import KL_FLOOR_NATS
from values.values import Values

PESSIMISM = 5.0
"""Standard deviations added to the mean: what is chosen for its low prediction is often chosen for its error (the
optimiser's curse). Chosen by plans of the second reference model (docs/predictor.md, "Far from what was measured")."""

QUICK_PESSIMISM, QUICK_CAUTION = 1.0, 2.0
"""The same of deviations that are quick to tell: the process's, and what predictions go astray by with the distance."""

SMALLEST_GAIN = 1e-5
"""In log KL: less is float32 rounding, and could go on for ever."""

NUM_JUDGED = 16

MOST_AT_ONCE = 16
"""Choices whose distances from the anchors are added up at once: some megabytes."""


class LevelValues:
    """The values at the levels of a request, whose kept fractions are `fractions` [L, K]: all that can be worked out
    before it is known where the descent begins. Where they are `quick`, doubt is told by the anchors near by and the
    distance from them, for choices by the million that are judged again: what the policy is taught, what a search is
    to measure."""

    def __init__(self, values: Values, fractions: FloatArray, *, quick: bool = False) -> None:
        self.values, self.fractions, self.quick = values, fractions, quick
        basis = values.basis
        self.own = basis.own_kl(fractions.T).T.copy()  # [L, K]
        places = basis.places(fractions.T).T.copy()
        self.apart: Float32Array = np.abs(places[:, :, None] - values.places.T[:, None])  # [L, K, N]
        self.up, self.down = _next_different(fractions)
        layers = np.arange(len(fractions))[:, None]
        scale = np.float32(-1.0 / values.kernel.length)
        self.up_factor: Float32Array = np.exp(scale * (self.apart[layers, self.up] - self.apart))
        self.down_factor: Float32Array = np.exp(scale * (self.apart[layers, self.down] - self.apart))

    def fractions_of(self, levels: IntArray) -> FloatArray:
        """Kept fractions [..., L] of levels [..., L]."""
        fractions: FloatArray = self.fractions[np.arange(len(self.fractions)), levels]
        return fractions

    def pessimistic(self, levels: IntArray) -> FloatArray:
        """Log KL [B] of `levels` [B, L] and standard deviations of it, read off the tables."""
        layers, values = np.arange(levels.shape[1]), self.values
        fractions, own = self.fractions_of(levels), self.own[layers, levels]
        parts = np.array_split(levels, -(-len(levels) // MOST_AT_ONCE))
        apart = np.concatenate([self.apart[layers, part].sum(axis=1) for part in parts])
        process = np.exp(np.float32(-1.0 / values.kernel.length) * apart) @ values.faded_alpha
        mean = values.basis.base(own) + values.basis.fade(fractions) * (values.regression(fractions, own) + process)
        return self.with_doubt(fractions, own, mean, apart)

    def with_doubt(self, fractions: FloatArray, own: FloatArray, mean: FloatArray, apart: Float32Array) -> FloatArray:
        """Pessimistic log KL [B] of `fractions` [B, L], whose `own` KL [B, L], `mean` [B] and distances `apart` [B, N]
        from the anchors are known."""
        values = self.values
        if not self.quick:
            thorough: FloatArray = mean + PESSIMISM * values.posterior_deviation(fractions, own, apart)
            return thorough
        deviation = values.deviation(fractions, mean, values.conditional_variance(apart, values.between_anchors))
        quick: FloatArray = mean + QUICK_PESSIMISM * deviation + QUICK_CAUTION * values.astray(fractions, apart)
        return quick


@dataclass(frozen=True, eq=False)
class Descent:
    """Where a descent stands: `levels` [L], and their pessimistic log KL `score`."""

    levels: IntArray
    score: float


def _next_different(fractions: FloatArray) -> tuple[IntArray, IntArray]:
    """[L, K] twice: the level next above, and next below, whose fraction is another one; itself where there is none.

    Levels that are brought down to coarse widths may coincide, and a step between them would be none.
    """
    K = fractions.shape[1]
    k = np.arange(K)
    wider = fractions[:, None] > fractions[:, :, None]  # [L, from, to]
    up = np.where(wider.any(axis=2), wider.argmax(axis=2), k)
    narrower = fractions[:, None] < fractions[:, :, None]
    down = np.where(narrower.any(axis=2), K - 1 - narrower[:, :, ::-1].argmax(axis=2), k)
    return up, down


def improve(
    table: LevelValues, costs: DecisionCosts, starts: Sequence[Descent], slack: IntArray, max_rounds: int
) -> Descent:
    """The best end of descents from `starts`, one at least, after at most `max_rounds` exchanges or raises each.

    Every step is to the best neighbour found, and none exceeds `slack` [J]. A descent that comes upon the path of one
    before it ends there: it would go the same way again.
    """
    best, visited = starts[0], set[bytes]()
    for here in starts:
        for _ in range(max_rounds):
            if (place := here.levels.tobytes()) in visited:
                break
            visited.add(place)
            found = _best_neighbour(table, costs, here, slack)
            if found is None or found.score >= here.score - SMALLEST_GAIN:
                break
            here = found
        best = min(best, here, key=lambda end: end.score)
    return best


def _best_neighbour(table: LevelValues, costs: DecisionCosts, here: Descent, slack: IntArray) -> Descent | None:
    """The neighbour of least pessimistic log KL among those that promise most; None if nothing fits."""
    levels, L = here.levels, costs.num_decisions
    layers = np.arange(L)
    up, down = table.up[layers, levels], table.down[layers, levels]
    valid = _valid(costs, levels, up, down, slack)
    if not valid.any():
        return None
    own = table.own[layers, levels]
    own_up, own_down = table.own[layers, up] - own, table.own[layers, down] - own
    own_down = np.append(own_down, 0.0)
    base = np.log(np.maximum(own.sum() + own_up[:, None] + own_down, 0.0) + KL_FLOOR_NATS)
    regression = _regression(table, levels, up, down)
    process, apart = _process(table, levels)
    # Beside the dense model the fade is not 1; those few are put right when they are judged.
    promise = np.where(valid, base + regression + process, np.inf).ravel()
    count = min(NUM_JUDGED, int(valid.sum()))
    chosen = np.argpartition(promise, count - 1)[:count]
    raised, lowered = np.divmod(chosen, L + 1)
    moved = np.repeat(levels[None], count, axis=0)
    rows = np.arange(count)
    moved[rows, raised] = up[raised]
    exchange = lowered < L
    moved[rows[exchange], lowered[exchange]] = down[lowered[exchange]]
    fractions = table.fractions_of(moved)
    owns = table.own[layers, moved]
    basis, values = table.values.basis, table.values
    regressions = values.regression(fractions, owns)
    means = basis.base(owns) + basis.fade(fractions) * (regressions + process.ravel()[chosen])
    change = table.apart[raised, up[raised]] - table.apart[raised, levels[raised]]
    lower = lowered[exchange]
    change[exchange] += table.apart[lower, down[lower]] - table.apart[lower, levels[lower]]
    far = apart + change
    scores = table.with_doubt(fractions, owns, means, far)
    best = int(scores.argmin())
    return Descent(moved[best], float(scores[best]))


def worth_of_raising(table: LevelValues, levels: IntArray) -> FloatArray:
    """[L] how much log KL falls per dense width of a layer, going from `levels` [L] one level up; 0 where dense."""
    layers = np.arange(len(levels))
    up = table.up[layers, levels]
    own = table.own[layers, levels]
    owns = np.append(own.sum() + table.own[layers, up] - own, own.sum())
    base = np.log(np.maximum(owns, 0.0) + KL_FLOOR_NATS)
    process, apart = _process(table, levels)
    here = table.values.faded_alpha @ np.exp(np.float32(-1.0 / table.values.kernel.length) * apart)
    raised, same = _replacing(table, levels, np.stack([up, levels]))
    regressions = np.append(raised, same[0])
    values = base + regressions + np.append(process[:, -1], here)
    wider = table.fractions[layers, up] - table.fractions[layers, levels]
    worth: FloatArray = np.where(wider > 0.0, (values[-1] - values[:-1]) / np.maximum(wider, 1e-12), 0.0)
    return worth


def _valid(costs: DecisionCosts, levels: IntArray, up: IntArray, down: IntArray, slack: IntArray) -> BoolArray:
    """[L, L + 1]: raising i and lowering j fits; the last column lowers nothing."""
    L = len(levels)
    layers = np.arange(L)
    now = costs.excess[:, layers, levels]
    dearer = costs.excess[:, layers, up] - now  # [J, L]
    freed = np.concatenate([now - costs.excess[:, layers, down], np.zeros((len(now), 1), dtype=np.int64)], axis=1)
    left = freed + (slack - now.sum(axis=1))[:, None]
    valid = np.ones((L, L + 1), dtype=np.bool_)
    for most, more in zip(left, dearer, strict=True):
        valid &= np.less_equal.outer(more, most)
    valid[layers, layers] = False
    valid[up == levels] = False
    valid[:, :L][:, down == levels] = False
    return valid


def _regression(table: LevelValues, levels: IntArray, up: IntArray, down: IntArray) -> FloatArray:
    """[L, L + 1] the regression's part of every move, as the sum of what its two halves change."""
    raised, lowered, here = _replacing(table, levels, np.stack([up, down, levels]))
    regression: FloatArray = raised[:, None] + np.append(lowered - here, 0.0)
    return regression


def _replacing(table: LevelValues, levels: IntArray, others: IntArray) -> FloatArray:
    """[B, L] the regression's part of `levels` [L] in which one layer alone is at its level in `others` [B, L]."""
    layers, now = np.arange(len(levels)), levels[None]
    replacing: FloatArray = table.values.regression.replacing(
        table.fractions_of(now), table.own[layers, now], table.fractions_of(others), table.own[layers, others]
    )
    return replacing


def _process(table: LevelValues, levels: IntArray) -> tuple[FloatArray, Float32Array]:
    """[L, L + 1] the process's part of every move, exact; and the distances [N] of `levels` from the anchors."""
    layers = np.arange(len(levels))
    apart: Float32Array = table.apart[layers, levels].sum(axis=0)
    here = table.values.faded_alpha * np.exp(np.float32(-1.0 / table.values.kernel.length) * apart)
    raised = table.up_factor[layers, levels] * here
    lowered = table.down_factor[layers, levels]
    process = np.concatenate([raised @ lowered.T, raised.sum(axis=1, keepdims=True)], axis=1)
    return process.astype(np.float64), apart
