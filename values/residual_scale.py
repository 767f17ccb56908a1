"""The residual scale: how large held-out residuals are, relative to their predicted deviations, at each retention."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray

BANDWIDTH = 0.02
"""Standard deviation, in retention, of the Gaussian weights of the local mean: a fifth of what lies between two usual
targets."""

PRIOR = 5.0
"""Weight of the overall mean in each local mean, in samples: few near samples change little."""

NUM_POINTS = 101


@dataclass(frozen=True)
class ResidualScale:
    """The factor for predicted deviations as a function of retention, linear between `points` (retention, factor).

    Without points it is 1. The residuals come from leave-one-group-out cross-validation: each sample is predicted by a
    fit without any sample of its target.
    """

    points: tuple[tuple[float, float], ...] = ()

    @classmethod
    def measure(cls, retention: FloatArray, scores: FloatArray, weights: FloatArray) -> "ResidualScale":
        """Local weighted means of |`scores`| [R], which are residuals over their predicted deviations.

        `retention` [R] says where they are; `weights` [R] are in (0, 1].
        """
        at = np.linspace(0.0, 1.0, NUM_POINTS)
        near = np.exp(-0.5 * ((at[:, None] - retention) / BANDWIDTH) ** 2) * weights
        size = np.abs(scores)
        mean = (near @ size + PRIOR * np.average(size, weights=weights)) / (near.sum(axis=1) + PRIOR)
        return cls(tuple(zip(at.tolist(), mean.tolist(), strict=True)))

    def at(self, retention: float) -> float:
        """The factor at this retention: above 1, residuals were larger than predicted."""
        if not self.points:
            return 1.0
        x, y = zip(*self.points, strict=True)
        return float(np.interp(retention, x, y))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ResidualScale":
        return cls(tuple((float(x), float(y)) for x, y in data["points"]))
