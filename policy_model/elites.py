"""The best configurations that were measured: candidates that need no decoding."""

from dataclasses import dataclass

import numpy as np

from policy_model.costs import DecisionCosts
from pruning.arrays import FloatArray, IntArray
from values.values import Values

NUM_ELITES = 4
"""Candidates for one request."""

BLOCK = 256
"""Configurations that are priced at once: most requests need no more than the first few blocks."""


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

    def best_fitting(self, costs: DecisionCosts, slack: IntArray, *, unused: float) -> IntArray:
        """The levels [E, L] of the `NUM_ELITES` configurations of least log KL among those that fit; fewer if fewer do.

        A configuration fits if, under each limit, what it costs above the lowest levels is at most the `slack` [J], and
        if it leaves at most `unused` of one of them: a share of what the highest levels cost above the lowest.
        """
        least = slack - unused * costs.most_from[0]
        found: list[IntArray] = []
        for start in range(0, len(self.levels), BLOCK):
            block = self.levels[start : start + BLOCK]
            spent = costs.spent(block)
            fits = (spent <= slack).all(axis=1) & (spent >= least).any(axis=1)
            found.extend(block[fits][: NUM_ELITES - len(found)])
            if len(found) == NUM_ELITES:
                break
        return np.array(found, dtype=np.int64).reshape(len(found), self.levels.shape[1])
