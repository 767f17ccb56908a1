"""The best configurations that were measured near by, and what lies between them: candidates that need no decoding.

Letters: E configurations, L decisions, K options, J limits.
"""

from dataclasses import dataclass

import numpy as np

from policy_model.costs import DecisionCosts
from pruning.arrays import FloatArray, IntArray
from values.values import Values

NUM_ENDS = 2
"""Configurations on each side of the limits, between which ways are taken."""

AS_NEAR = 1 / 16
"""Of what the highest options cost above the lowest: the best of those that are at most so much farther from the limits
than the nearest one are the ends of ways."""


@dataclass(frozen=True, eq=False)
class Elites:
    """The `levels` [E, L] of measured configurations and their fitted `log_kl` [E], best first."""

    levels: IntArray
    log_kl: FloatArray

    @classmethod
    def of(cls, values: Values) -> "Elites":
        """The anchors of `values` that are choices of the space."""
        places = values.basis.places(values.basis.knots.T).T  # [L, K]
        apart = np.abs(values.places[:, :, None] - places)  # [N, L, K]
        levels = apart.argmin(axis=2)
        levels = levels[(apart.min(axis=2) < 1e-5).all(axis=1)]
        log_kl = values(values.basis.knots[np.arange(levels.shape[1]), levels]) if len(levels) else np.empty(0)
        order = log_kl.argsort(kind="stable")
        return cls(levels[order], log_kl[order])

    def between(self, costs: DecisionCosts, slack: IntArray, own: FloatArray) -> IntArray:
        """The levels [E, L] that fit on ways from the best configurations just within `slack` [J] to the best just
        beyond it, and the former themselves where they are near it; none where none is within. `own` [L, K] is the KL
        of each decision alone.

        Up from within, options of the other end are taken that save most KL for their cost, without those that do not
        fit; down from beyond, those that lose least for it, until all fits.
        """
        binding = costs.most_from[0] > 0
        if not binding.any():
            return np.empty((0, self.levels.shape[1]), dtype=np.int64)
        over = ((costs.spent(self.levels) - slack) / np.maximum(costs.most_from[0], 1))[:, binding].max(axis=1)
        within, beyond = np.flatnonzero(over <= 0.0), np.flatnonzero(over > 0.0)
        if not len(within):
            return np.empty((0, self.levels.shape[1]), dtype=np.int64)
        # Configurations are in the order of their KL.
        lower = within[over[within] >= over[within].max() - AS_NEAR][:NUM_ENDS]
        upper = beyond[over[beyond] <= over[beyond].min(initial=np.inf) + AS_NEAR][:NUM_ENDS]
        # Farther from the limits an end is no answer: the values are sure of it, so it would be taken for that alone.
        found: list[IntArray] = [*self.levels[lower[over[lower] >= -AS_NEAR]]]
        for low in self.levels[lower]:
            for high in self.levels[upper]:
                found += [_way(costs, slack, own, low, high), _way(costs, slack, own, high, low)]
        return np.array(found, dtype=np.int64).reshape(len(found), self.levels.shape[1])


def _way(costs: DecisionCosts, slack: IntArray, own: FloatArray, start: IntArray, end: IntArray) -> IntArray:
    """[L] as far from `start` towards `end` as the `slack` [J] allows, or asks for.

    A start that fits goes up: decisions at which `end` costs more, best first. One that does not goes down, likewise.
    """
    decisions = np.arange(len(start))
    dearer = costs.excess[:, decisions, end] - costs.excess[:, decisions, start]  # [J, L]
    shares = dearer / np.maximum(costs.most_from[0], 1)[:, None]
    left = slack - costs.spent(start[None])[0]
    is_up = bool((left >= 0).all())
    # Down counts what frees a limit that is exceeded: the others have room.
    change = shares.max(axis=0) if is_up else -shares[left < 0].min(axis=0)
    changed = np.flatnonzero(change > 0.0)
    loses = (own[decisions, end] - own[decisions, start])[changed]
    levels, spare = start.copy(), left.tolist()
    steps = dearer.T.tolist()  # numbers of Python: a request cannot wait for arrays of one element
    for n in changed[np.argsort(loses / change[changed], kind="stable")].tolist():
        then = [a - b for a, b in zip(spare, steps[n], strict=True)]
        if not is_up and min(spare) >= 0:
            break
        if not is_up or min(then) >= 0:
            levels[n], spare = end[n], then
    return levels if min(spare) >= 0 else end
