"""How far off a prediction may be: split conformal intervals from leave-one-out residuals.

Vovk et al., "Algorithmic Learning in a Random World" (2005); scores are residuals divided by the expected error, and
the quantile has its finite-sample correction, as in Angelopoulos and Bates, arXiv 2107.07511, sections 1 and 2.3.
For a configuration that is exchangeable with the samples the interval holds the true value with at least the asked
probability. A plan is not drawn like a sample: it was chosen for its low prediction. Its quantiles therefore come from
the samples that would have been chosen, those of least leave-one-out prediction among their neighbours in retention.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_model.encoding import KL_FLOOR_NATS
from pruning.arrays import FloatArray
from pruning.isotonic import non_decreasing

COVERAGE = 0.9

CHOSEN_WITHIN = 0.01
"""Retention within which samples count as alternatives of each other."""

CHOSEN_SHARE = 0.1
"""Of the alternatives: those that count as chosen; more where that makes fewer than `LEAST_CHOSEN` of all."""

LEAST_CHOSEN = 40
"""Fewer than 19 scores could not tell the ends of a 90% interval."""

MAX_CURVE_POINTS = 64


@dataclass(frozen=True)
class Quantiles:
    """Scores (residual over expected error) between which `COVERAGE` of `num_scores` lie."""

    low: float
    high: float
    num_scores: int

    @classmethod
    def of(cls, scores: FloatArray) -> "Quantiles":
        """From scores [R], at least one."""
        ordered: list[float] = np.sort(scores).tolist()
        n, tail = len(ordered), (1.0 - COVERAGE) / 2.0
        rank = min(n, math.ceil((n + 1) * (1.0 - tail)))  # 1-based, counted from either end
        return cls(low=ordered[n - rank], high=ordered[rank - 1], num_scores=n)


@dataclass(frozen=True)
class AccuracyCurve:
    """Accuracy as a falling function of log KL, linear between its `points`.

    Around it a measured accuracy a deviates by `noise` x sqrt(a (1 - a)), as the mean of so many answers does.
    """

    points: tuple[tuple[float, float], ...]
    noise: float

    @classmethod
    def fit(cls, log_kl: FloatArray, accuracy: FloatArray, weights: FloatArray) -> "AccuracyCurve":
        """Isotonic least squares (pool adjacent violators) of samples [N]."""
        order = np.argsort(log_kl, kind="stable")
        x, fitted = log_kl[order], -non_decreasing(-accuracy[order], weights[order])
        kept = np.unique(np.linspace(0, len(x) - 1, min(MAX_CURVE_POINTS, len(x))).astype(np.int64))
        points = tuple((float(a), float(b)) for a, b in zip(x[kept], fitted[kept], strict=True))
        curve = cls(points, 0.0)
        expected = curve(log_kl)
        residual = (accuracy - expected) / _binomial(expected)
        return cls(points, float(np.sqrt(np.average(residual**2, weights=weights))) + 1e-6)

    def __call__(self, log_kl: FloatArray) -> FloatArray:
        """Accuracy [B] at `log_kl` [B]."""
        x, y = zip(*self.points, strict=True)
        accuracy: FloatArray = np.interp(log_kl, x, y)
        return accuracy

    def expected_error(self, log_kl: FloatArray, deviation: FloatArray) -> FloatArray:
        """[B] of the accuracy, when log KL is known up to `deviation` [B]."""
        change = 0.5 * (self(log_kl - deviation) - self(log_kl + deviation))
        error: FloatArray = np.hypot(change, self.noise * _binomial(self(log_kl)))
        return error


@dataclass(frozen=True)
class Calibration:
    """Intervals of KL and accuracy: `sample` for configurations as they come, `plan` for those that were chosen."""

    sample: Quantiles
    plan: Quantiles
    accuracy: Quantiles
    curve: AccuracyCurve
    coverage: float = COVERAGE

    @classmethod
    def measure(
        cls,
        log_kl: FloatArray,
        accuracy: FloatArray,
        errors: FloatArray,
        deviations: FloatArray,
        retention: FloatArray,
        weights: FloatArray,
    ) -> "Calibration":
        """From samples [R]: what was measured, its leave-one-out `errors` in log KL, and the errors expected."""
        predicted = log_kl - errors
        curve = AccuracyCurve.fit(log_kl, accuracy, weights)
        scores = errors / deviations
        chosen = chosen_among_neighbours(predicted, retention)
        expected = curve.expected_error(predicted, deviations)
        return cls(
            sample=Quantiles.of(scores),
            plan=Quantiles.of(scores[chosen]),
            accuracy=Quantiles.of((accuracy - curve(predicted))[chosen] / expected[chosen]),
            curve=curve,
        )

    def interval(self, log_kl: float, deviation: float, *, chosen: bool = True) -> tuple[float, float]:
        """Bounds of the KL in nats around a predicted log KL; of a plan, or (not `chosen`) of any configuration."""
        quantiles = self.plan if chosen else self.sample
        # An interval that leaves its prediction out would be honest, and no use to anybody.
        low, high = min(quantiles.low, 0.0), max(quantiles.high, 0.0)
        return kl_of(log_kl + low * deviation), kl_of(log_kl + high * deviation)

    def expected_accuracy(self, log_kl: float, deviation: float) -> tuple[float, tuple[float, float]]:
        """Accuracy in [0, 1] of a plan, and the bounds of its interval."""
        at, spread = np.array([log_kl]), np.array([deviation])
        accuracy, error = float(self.curve(at)[0]), float(self.curve.expected_error(at, spread)[0])
        low = accuracy + min(self.accuracy.low, 0.0) * error
        high = accuracy + max(self.accuracy.high, 0.0) * error
        return accuracy, (max(low, 0.0), min(high, 1.0))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Calibration":
        points = tuple((float(x), float(y)) for x, y in data["curve"]["points"])
        return cls(
            sample=Quantiles(**data["sample"]),
            plan=Quantiles(**data["plan"]),
            accuracy=Quantiles(**data["accuracy"]),
            curve=AccuracyCurve(points, data["curve"]["noise"]),
            coverage=data["coverage"],
        )


def _binomial(accuracy: FloatArray) -> FloatArray:
    """sqrt(a (1 - a)) [B], not less than at 99%: no model is sure of every answer."""
    deviation: FloatArray = np.sqrt(np.maximum(accuracy * (1.0 - accuracy), 0.01 * 0.99))
    return deviation


def chosen_among_neighbours(predicted: FloatArray, retention: FloatArray) -> NDArray[np.bool_]:
    """bool [R]: of least prediction among the samples of about the same retention."""
    chosen = np.zeros(len(predicted), dtype=np.bool_)
    share = min(1.0, max(CHOSEN_SHARE, LEAST_CHOSEN / len(predicted)))
    for index, (value, kept) in enumerate(zip(predicted, retention, strict=True)):
        near = predicted[np.abs(retention - kept) <= CHOSEN_WITHIN]
        chosen[index] = value <= np.quantile(near, share)
    return chosen


def kl_of(log_kl: float) -> float:
    """KL in nats, at least 0: the inverse of `encoding.log_kl`."""
    return max(math.exp(min(log_kl, 50.0)) - KL_FLOOR_NATS, 0.0)
