"""Conformal quantiles: between which scores do nine in ten residuals of samples that were left out lie.

Vovk et al., "Algorithmic Learning in a Random World" (2005); the quantile has the finite-sample correction of
Angelopoulos and Bates, arXiv 2107.07511, sections 1 and 2.3, approximately where scores are weighted. Scores are
residuals over the expected error, and that over the spread that scores have at about the predicted log KL (locally
weighted conformal prediction, Lei et al., arXiv 1604.04173, section 5.2): what a mild pruning costs is known far less
well, relatively, than what a strong one does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray

COVERAGE = 0.9

SPREAD_BANDWIDTH = 0.5
"""Log KL within which samples tell the spread of each other's scores: half of what ten points of sparsity change."""

SPREAD_PRIOR = 10.0
"""Samples that the spread of all scores counts as, where few are near."""

MAX_CURVE_POINTS = 64


@dataclass(frozen=True)
class Quantiles:
    """Scores (residual over expected error) between which `COVERAGE` of `num_scores` lie.

    `low` and `high` are in units of the mean absolute score at the predicted log KL, which is linear between the points
    of `spread`; 1 without any, as in predictors from before it was told apart.
    """

    low: float
    high: float
    num_scores: int
    spread: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, scores: FloatArray, log_kl: FloatArray, weights: FloatArray | None = None) -> "Quantiles":
        """From scores [R] at predicted `log_kl` [R], at least one; `weights` [R] are by default equal."""
        count = np.ones(len(scores)) if weights is None else weights * (len(scores) / weights.sum())
        points = np.unique(np.linspace(log_kl.min(), log_kl.max(), MAX_CURVE_POINTS))
        spread = tuple(zip(points.tolist(), _spread(points, scores, log_kl, count).tolist(), strict=True))
        # A score takes no part in its own spread, as one that is asked about does not.
        scaled = scores / _spread(log_kl, scores, log_kl, count, without_self=True)
        high, low = _upper_quantile(scaled, count), -_upper_quantile(-scaled, count)
        return cls(low=low, high=high, num_scores=len(scores), spread=spread)

    def at(self, log_kl: float) -> tuple[float, float]:
        """Bounds of the score at a predicted log KL.

        Never of one sign: an interval that leaves its prediction out would be honest, and no use to anybody.
        """
        scale = 1.0
        if self.spread:
            x, y = zip(*self.spread, strict=True)
            scale = float(np.interp(log_kl, x, y))
        return min(self.low, 0.0) * scale, max(self.high, 0.0) * scale

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Quantiles":
        spread = tuple((float(x), float(y)) for x, y in data.get("spread", ()))
        return cls(data["low"], data["high"], data["num_scores"], spread)


def _upper_quantile(scores: FloatArray, count: FloatArray) -> float:
    """The least of scores [R] that at least half of 1 + `COVERAGE` of them and of one more, unknown score reach up to.

    `count` [R] is how many each stands for; together R.
    """
    order = np.argsort(scores, kind="stable")
    needed = (len(scores) + 1) * (1.0 + COVERAGE) / 2.0
    rank = int(np.searchsorted(count[order].cumsum(), needed - 1e-6))
    return float(scores[order][min(rank, len(scores) - 1)])


def _spread(
    at: FloatArray, scores: FloatArray, log_kl: FloatArray, count: FloatArray, *, without_self: bool = False
) -> FloatArray:
    """Mean absolute score [A] near log KL `at` [A], by a Gaussian kernel over scores [R] at `log_kl` [R].

    `without_self`: `at` is `log_kl`, and no score counts for itself.
    """
    kernel = np.exp(-0.5 * ((at[:, None] - log_kl) / SPREAD_BANDWIDTH) ** 2) * count
    if without_self:
        np.fill_diagonal(kernel, 0.0)
    size = np.abs(scores)
    overall = np.average(size, weights=count)
    spread: FloatArray = (kernel @ size + SPREAD_PRIOR * overall) / (kernel.sum(axis=1) + SPREAD_PRIOR)
    return np.maximum(spread, 1e-9)
