"""How far off a prediction may be: split conformal intervals from held-out residuals.

Vovk et al., "Algorithmic Learning in a Random World" (2005); scores are residuals divided by the expected error, and
the quantile has its finite-sample correction, as in Angelopoulos and Bates, arXiv 2107.07511, sections 1 and 2.3.
If a new plan were exchangeable with the held-out samples, the interval would hold the true KL with at least the asked
probability. Plans are not drawn like samples, so it is a measured error bar and no guarantee; the expected error grows
away from the samples, and the interval with it.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from policy_model.encoding import KL_FLOOR_NATS

COVERAGE = 0.9


@dataclass(frozen=True)
class Calibration:
    """Scores (residual of log KL over expected error) that enclose `coverage` of the held-out ones.

    `low` and `high` are quantiles of the scores, `noise` the expected error at the samples themselves in log KL.
    """

    low: float
    high: float
    noise: float
    num_scores: int
    coverage: float = COVERAGE

    @classmethod
    def measure(cls, scores: Tensor, noise: float) -> "Calibration":
        """From held-out scores [R]."""
        ordered: list[float] = scores.sort().values.tolist()
        n, tail = len(ordered), (1.0 - COVERAGE) / 2.0
        rank = min(n, math.ceil((n + 1) * (1.0 - tail)))  # 1-based, counted from either end
        return cls(low=min(ordered[n - rank], 0.0), high=max(ordered[rank - 1], 0.0), noise=noise, num_scores=n)

    def interval(self, log_kl: float, deviation: float) -> tuple[float, float]:
        """Bounds of the KL in nats around a predicted log KL of posterior standard deviation `deviation`."""
        expected = math.hypot(self.noise, deviation)
        return kl_of(log_kl + self.low * expected), kl_of(log_kl + self.high * expected)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def kl_of(log_kl: float) -> float:
    """KL in nats, at least 0: the inverse of `encoding.log_kl`."""
    return max(math.exp(min(log_kl, 50.0)) - KL_FLOOR_NATS, 0.0)
