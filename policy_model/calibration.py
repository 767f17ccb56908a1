"""How far off a prediction may be: split conformal intervals from held-out residuals.

Vovk et al., "Algorithmic Learning in a Random World" (2005); the quantile with its finite-sample correction as in
Angelopoulos and Bates, arXiv 2107.07511, section 1. If a new plan were exchangeable with the held-out samples, the
interval would hold the true KL with at least the asked probability. Plans are not drawn like samples, so it is a
measured error bar and no guarantee; outside the searched retentions it is widened.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from policy_model.encoding import KL_FLOOR_NATS

COVERAGE = 0.9
WIDENING_RETENTION = 0.1
"""Distance outside the searched retentions at which the interval is twice as wide: a rule of thumb, not measured."""


@dataclass(frozen=True)
class Calibration:
    """Residuals of log KL (truth minus prediction) that enclose `coverage` of the held-out ones.

    `low` and `high` are the residual quantiles, `lowest_retention` and `highest_retention` what was searched.
    """

    low: float
    high: float
    lowest_retention: float
    highest_retention: float
    num_residuals: int
    coverage: float = COVERAGE

    @classmethod
    def measure(cls, residuals: Tensor, lowest_retention: float, highest_retention: float) -> "Calibration":
        """From held-out residuals [R] of log KL."""
        ordered: list[float] = residuals.sort().values.tolist()
        n, tail = len(ordered), (1.0 - COVERAGE) / 2.0
        rank = min(n, math.ceil((n + 1) * (1.0 - tail)))  # 1-based, counted from either end
        return cls(
            low=min(ordered[n - rank], 0.0),
            high=max(ordered[rank - 1], 0.0),
            lowest_retention=lowest_retention,
            highest_retention=highest_retention,
            num_residuals=n,
        )

    def interval(self, log_kl: float, retention: float) -> tuple[float, float]:
        """Bounds of the KL in nats around a predicted log KL at a `retention` of the FFN parameters."""
        outside = max(self.lowest_retention - retention, retention - self.highest_retention, 0.0)
        widening = 1.0 + outside / WIDENING_RETENTION
        return kl_of(log_kl + self.low * widening), kl_of(log_kl + self.high * widening)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def kl_of(log_kl: float) -> float:
    """KL in nats, at least 0: the inverse of `encoding.log_kl`."""
    return max(math.exp(min(log_kl, 50.0)) - KL_FLOOR_NATS, 0.0)
