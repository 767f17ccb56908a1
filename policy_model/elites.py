"""The best configurations that were measured: candidates that need no decoding."""

from dataclasses import dataclass

import numpy as np

from policy_model.costs import LevelCosts
from policy_model.values import Values
from pruning.arrays import FloatArray, IntArray

NUM_ELITES = 4
"""Candidates for one request."""


@dataclass(frozen=True, eq=False)
class Elites:
    """0-based `levels` [E, L] of measured configurations and their fitted `log_kl` [E], best first."""

    levels: IntArray
    log_kl: FloatArray

    @classmethod
    def of(cls, values: Values) -> "Elites":
        """Those anchors of `values` that lie on the grid; their places tell their levels."""
        places = np.stack([values.basis.places(row[None])[0] for row in values.basis.knots.T], axis=1)  # [L, K]
        apart = np.abs(values.places[:, :, None] - places)  # [N, L, K]
        levels = apart.argmin(axis=2)
        on_grid = (apart.min(axis=2) < 1e-5).all(axis=1)
        levels = levels[on_grid]
        log_kl = values(values.basis.knots[np.arange(levels.shape[1]), levels]) if len(levels) else np.empty(0)
        order = log_kl.argsort(kind="stable")
        return cls(levels[order], log_kl[order])

    def within(self, costs: LevelCosts, slack: IntArray) -> IntArray:
        """At most `NUM_ELITES` levels [E, L] of least log KL that keep to `slack` [J]."""
        fitting = np.flatnonzero((costs.spent(self.levels) <= slack).all(axis=1))
        return self.levels[fitting[:NUM_ELITES]]
