"""Where the values were wrong: how far off they were, for what they expected, at each retention."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray

BANDWIDTH = 0.02
"""Retention within which residuals speak for each other: a fifth of what lies between two usual targets."""

PRIOR = 5.0
"""Samples that the mean of all counts as, where few are near."""

NUM_POINTS = 101


@dataclass(frozen=True)
class PastErrors:
    """Mean |residual| over expected error, linear between `points` (retention, mean); 1 without any.

    Residuals are of samples that were left out with all others of their target: what is learnt from those around it.
    """

    points: tuple[tuple[float, float], ...] = ()

    @classmethod
    def measure(cls, retention: FloatArray, scores: FloatArray, weights: FloatArray) -> "PastErrors":
        """From residuals over expected errors `scores` [R] at `retention` [R]; `weights` [R] in (0, 1]."""
        at = np.linspace(0.0, 1.0, NUM_POINTS)
        near = np.exp(-0.5 * ((at[:, None] - retention) / BANDWIDTH) ** 2) * weights
        size = np.abs(scores)
        mean = (near @ size + PRIOR * np.average(size, weights=weights)) / (near.sum(axis=1) + PRIOR)
        return cls(tuple(zip(at.tolist(), mean.tolist(), strict=True)))

    def at(self, retention: float) -> float:
        """How many times as far off as expected the values were at about this retention."""
        if not self.points:
            return 1.0
        x, y = zip(*self.points, strict=True)
        return float(np.interp(retention, x, y))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PastErrors":
        return cls(tuple((float(x), float(y)) for x, y in data["points"]))
