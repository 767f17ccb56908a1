"""Shares that fall as KL rises, and how far off a predicted one may be: exact match of answers, agreement of tokens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from pruning.arrays import FloatArray
from values.judged_samples import JudgedSamples
from values.quantiles import MAX_CURVE_POINTS, Quantiles


@dataclass(frozen=True)
class ShareCurve:
    """A share of units (answers, tokens) as a falling function of log KL, linear between its `points`.

    Around it a measured share a deviates by `noise` x sqrt(a (1 - a)), as the mean of so many units does.
    """

    points: tuple[tuple[float, float], ...]
    noise: float

    @classmethod
    def fit(cls, log_kl: FloatArray, share: FloatArray, weights: FloatArray) -> "ShareCurve":
        """Isotonic least squares of samples [N]."""
        order = np.argsort(log_kl, kind="stable")
        x = log_kl[order]
        fitted = isotonic_regression(share[order], weights=weights[order], increasing=False).x
        kept = np.unique(np.linspace(0, len(x) - 1, min(MAX_CURVE_POINTS, len(x))).astype(np.int64))
        points = tuple((float(a), float(b)) for a, b in zip(x[kept], fitted[kept], strict=True))
        curve = cls(points, 0.0)
        expected = curve(log_kl)
        residual = (share - expected) / _binomial(expected)
        return cls(points, float(np.sqrt(np.average(residual**2, weights=weights))) + 1e-6)

    def __call__(self, log_kl: FloatArray) -> FloatArray:
        """The share [B] at `log_kl` [B]."""
        x, y = zip(*self.points, strict=True)
        share: FloatArray = np.interp(log_kl, x, y)
        return share

    def expected_error(self, log_kl: FloatArray, deviation: FloatArray) -> FloatArray:
        """[B] of the share, when log KL is known up to `deviation` [B]."""
        change = 0.5 * (self(log_kl - deviation) - self(log_kl + deviation))
        error: FloatArray = np.hypot(change, self.noise * _binomial(self(log_kl)))
        return error

    def scores(self, share: FloatArray, log_kl: FloatArray, deviation: FloatArray) -> FloatArray:
        """[B] how far measured `share` [B] is above the curve, over `expected_error`."""
        scores: FloatArray = (share - self(log_kl)) / self.expected_error(log_kl, deviation)
        return scores

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ShareCurve":
        return cls(tuple((float(x), float(y)) for x, y in data["points"]), data["noise"])


@dataclass(frozen=True)
class ShareIntervals:
    """A share with its interval: `plan` for what the predictor chose, `sample` for any other configuration."""

    plan: Quantiles
    sample: Quantiles
    curve: ShareCurve

    @classmethod
    def measure(cls, share: FloatArray, judged: JudgedSamples) -> "ShareIntervals":
        """From the measured `share` [R] of samples, and how those are judged."""
        curve = ShareCurve.fit(judged.log_kl, share, judged.weights)
        alone = curve.scores(share, judged.predicted_alone, judged.alone.deviations)
        inner = _scores_by_group(curve, share, judged)[judged.inner]
        return cls(judged.quantiles_of_plans(alone, inner), judged.quantiles_of_samples(inner), curve)

    def expected(self, log_kl: float, deviation: float, *, chosen: bool) -> tuple[float, tuple[float, float]]:
        """The share in [0, 1], and the bounds of its interval; of a plan, or (not `chosen`) of any configuration."""
        share = float(self.curve(np.array([log_kl]))[0])
        below, above = self.errors(log_kl, deviation, chosen=chosen)
        return share, (max(share + below, 0.0), min(share + above, 1.0))

    def errors(self, log_kl: float, deviation: float, *, chosen: bool) -> tuple[float, float]:
        """From the share to the ends of its interval: at most 0, and at least 0."""
        error = float(self.curve.expected_error(np.array([log_kl]), np.array([deviation]))[0])
        low, high = (self.plan if chosen else self.sample).at(log_kl)
        return low * error, high * error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ShareIntervals":
        plan, sample = Quantiles.from_dict(data["plan"]), Quantiles.from_dict(data["sample"])
        return cls(plan, sample, ShareCurve.from_dict(data["curve"]))


def _scores_by_group(curve: ShareCurve, share: FloatArray, judged: JudgedSamples) -> FloatArray:
    """[R] of shares, each by a curve without its group: one through a target's own samples fits better there than
    between targets. The noise is that of the whole `curve`."""
    log_kl, weights = judged.log_kl, judged.weights
    scores = np.empty(len(share))
    for group in np.unique(judged.groups):
        here, rest = judged.groups == group, judged.groups != group
        fitted = curve
        if rest.any():
            fitted = replace(ShareCurve.fit(log_kl[rest], share[rest], weights[rest]), noise=curve.noise)
        predicted = log_kl[here] - judged.grouped.errors[here]
        scores[here] = fitted.scores(share[here], predicted, judged.grouped.deviations[here])
    return scores


def _binomial(share: FloatArray) -> FloatArray:
    """sqrt(a (1 - a)) [B], not less than at 99%: no model is sure of every answer."""
    deviation: FloatArray = np.sqrt(np.maximum(share * (1.0 - share), 0.01 * 0.99))
    return deviation
