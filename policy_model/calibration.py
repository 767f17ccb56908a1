"""How far off a prediction may be: conformal intervals from the residuals of samples that were left out.

Vovk et al., "Algorithmic Learning in a Random World" (2005); the quantile has the finite-sample correction of
Angelopoulos and Bates, arXiv 2107.07511, sections 1 and 2.3, approximately where scores are weighted. Scores are
residuals over the expected error, and that over the spread that scores have at about the predicted log KL (locally
weighted conformal prediction, Lei et al., arXiv 1604.04173, section 5.2): what a mild pruning costs is known far less
well, relatively, than what a strong one does.

What is left out is about as far from the rest as what is asked about (as in nearest neighbour distance matching, Milà
et al. 2022). Any configuration at a new target knows of the targets around it only: samples are judged without all
others of about their retention. A plan of the predictor's own is made for a target that may be anywhere between two
searched ones. Where a process of independent increments is known at both ends of a gap s, its variance at a place
inside is s / 6 on average; with the place's own target left out the gap is 2 s and the variance in its middle s / 2.
So what leaving out the target adds to leaving out only the sample is expected of a plan by a third, and its quantiles
are of both kinds of scores, the former counting a third. A plan is near the best that is known, so samples count for
it by the weight that they have in the values (weighted conformal prediction, Tibshirani et al., arXiv 1904.06019).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from policy_model.encoding import KL_FLOOR_NATS
from policy_model.left_out import LeftOut, inner_groups
from pruning.arrays import FloatArray, IntArray
from pruning.isotonic import non_decreasing

COVERAGE = 0.9

SPREAD_BANDWIDTH = 0.5
"""Log KL within which samples tell the spread of each other's scores: half of what ten points of sparsity change."""

SPREAD_PRIOR = 10.0
"""Samples that the spread of all scores counts as, where few are near."""

GROUPED_SHARE = 1.0 / 3.0
"""Of a plan's scores: those without all samples of about their retention. See above."""

MAX_CURVE_POINTS = 64

LEAST_SCORES = 40
"""Fewer than 19 scores could not tell the ends of a 90% interval."""


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

    def scores(self, accuracy: FloatArray, log_kl: FloatArray, deviation: FloatArray) -> FloatArray:
        """[B] how far measured `accuracy` [B] is above the curve, over `expected_error`."""
        scores: FloatArray = (accuracy - self(log_kl)) / self.expected_error(log_kl, deviation)
        return scores


@dataclass(frozen=True)
class Calibration:
    """Intervals of KL and accuracy: `plan` for what the predictor chose, `sample` for any other configuration."""

    plan: Quantiles
    sample: Quantiles
    plan_accuracy: Quantiles
    sample_accuracy: Quantiles
    curve: AccuracyCurve
    coverage: float = COVERAGE

    @classmethod
    def measure(
        cls,
        log_kl: FloatArray,
        accuracy: FloatArray,
        alone: LeftOut,
        grouped: LeftOut,
        groups: IntArray,
        weights: FloatArray,
    ) -> "Calibration":
        """From samples [R]: what was measured, and how they are judged `alone` without themselves, and `grouped`
        without all of their group.

        `groups` [R] as `left_out.retention_groups`; `weights` [R] in (0, 1], the nearer to the frontier the more.
        """
        curve = AccuracyCurve.fit(log_kl, accuracy, weights)
        inner = inner_groups(groups, LEAST_SCORES)
        others = grouped.at(inner)
        own, predicted = log_kl - alone.errors, log_kl[inner] - others.errors
        alone_accuracy = curve.scores(accuracy, own, alone.deviations)
        others_accuracy = _scores_by_group(curve, log_kl, accuracy, grouped, groups, weights)[inner]

        counts = [share * w / w.sum() for share, w in ((1 - GROUPED_SHARE, weights), (GROUPED_SHARE, weights[inner]))]

        def of_plans(alone_scores: FloatArray, grouped_scores: FloatArray) -> Quantiles:
            both = np.concatenate([alone_scores, grouped_scores])
            return Quantiles.of(both, np.concatenate([own, predicted]), np.concatenate(counts))

        return cls(
            plan=of_plans(alone.scores, others.scores),
            sample=Quantiles.of(others.scores, predicted),
            plan_accuracy=of_plans(alone_accuracy, others_accuracy),
            sample_accuracy=Quantiles.of(others_accuracy, predicted),
            curve=curve,
        )

    def interval(self, log_kl: float, deviation: float, *, chosen: bool = True) -> tuple[float, float]:
        """Bounds of the KL in nats around a predicted log KL; of a plan, or (not `chosen`) of any configuration."""
        low, high = (self.plan if chosen else self.sample).at(log_kl)
        return kl_of(log_kl + low * deviation), kl_of(log_kl + high * deviation)

    def expected_accuracy(
        self, log_kl: float, deviation: float, *, chosen: bool = True
    ) -> tuple[float, tuple[float, float]]:
        """Accuracy in [0, 1], and the bounds of its interval; of a plan, or (not `chosen`) of any configuration."""
        at, spread = np.array([log_kl]), np.array([deviation])
        accuracy, error = float(self.curve(at)[0]), float(self.curve.expected_error(at, spread)[0])
        low, high = (self.plan_accuracy if chosen else self.sample_accuracy).at(log_kl)
        return accuracy, (max(accuracy + low * error, 0.0), min(accuracy + high * error, 1.0))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Calibration":
        """Also of predictors that had one interval of accuracy, `accuracy`."""
        points = tuple((float(x), float(y)) for x, y in data["curve"]["points"])
        accuracy = data.get("accuracy")
        return cls(
            plan=Quantiles.from_dict(data["plan"]),
            sample=Quantiles.from_dict(data["sample"]),
            plan_accuracy=Quantiles.from_dict(accuracy or data["plan_accuracy"]),
            sample_accuracy=Quantiles.from_dict(accuracy or data["sample_accuracy"]),
            curve=AccuracyCurve(points, data["curve"]["noise"]),
            coverage=data["coverage"],
        )


def _scores_by_group(
    curve: AccuracyCurve,
    log_kl: FloatArray,
    accuracy: FloatArray,
    grouped: LeftOut,
    groups: IntArray,
    weights: FloatArray,
) -> FloatArray:
    """[R] of accuracies, each by a curve without its group: one through a target's own samples fits better there than
    between targets. The noise is that of the whole `curve`."""
    scores = np.empty(len(accuracy))
    for group in np.unique(groups):
        here, rest = groups == group, groups != group
        fitted = curve
        if rest.any():
            fitted = replace(AccuracyCurve.fit(log_kl[rest], accuracy[rest], weights[rest]), noise=curve.noise)
        predicted = log_kl[here] - grouped.errors[here]
        scores[here] = fitted.scores(accuracy[here], predicted, grouped.deviations[here])
    return scores


def _binomial(accuracy: FloatArray) -> FloatArray:
    """sqrt(a (1 - a)) [B], not less than at 99%: no model is sure of every answer."""
    deviation: FloatArray = np.sqrt(np.maximum(accuracy * (1.0 - accuracy), 0.01 * 0.99))
    return deviation


def kl_of(log_kl: float) -> float:
    """KL in nats, at least 0: the inverse of `encoding.log_kl`."""
    return max(math.exp(min(log_kl, 50.0)) - KL_FLOOR_NATS, 0.0)
