"""What a configuration is worth on unseen conversations, from what it is worth on those it was chosen by.

    log KL(unseen) = log KL(calibration) + gap,    share(unseen) = curve(log KL(unseen)) + offset

Cross-validation says the gap at every searched target. It is the larger the less a target costs: where KL is small, a
few conversations make most of it, and they are the ones that a search avoids. So gap and offset are local means over
the targets, by log KL. Their standard errors come from the folds (of a ratio estimator: Cochran, Sampling Techniques,
1977, section 6.4). What is promised is the mean over as many unseen conversations as there were to calibrate on: those
vary as much as the ones that the gap was learnt on, so the variance counts twice.

Letters: A points asked about, N targets, F folds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from pruning.arrays import FloatArray
from values.calibration import kl_of
from values.cross_validation import CrossValidation
from values.kl_floor import log_kl
from values.quantiles import COVERAGE, SPREAD_BANDWIDTH
from values.shares import ShareCurve

LEAST_DEVIATION = 0.01
"""Of log KL: no set of conversations is another's equal."""

LEAST_VARIANCE = 0.01 * 0.99
"""Of an answer or a token: that of a share of 99%, which folds that agree in everything do not rule out."""


@dataclass(frozen=True, slots=True)
class ExpectedQuality:
    """KL in nats, exact match and agreement on unseen conversations, each with its 90% interval."""

    kl: float
    interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    agreement: float
    agreement_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class UnseenPoint:
    """What cross-validation says at one target.

    Attributes:
        log_kl: of the best configuration on all calibration conversations.
        gap: log KL on folds that had no part in the choice, less `log_kl`.
        deviation: standard deviation of log KL on other conversations.
        accuracy, agreement: shares on folds that had no part in the choice.
        accuracy_deviation, agreement_deviation: standard deviations of those on other conversations; exact match
            counts relative to the dense model's, which varies with the conversations too.
        dense_accuracy: exact match of the dense model on all calibration conversations.
        num_folds: F.
    """

    log_kl: float
    gap: float
    deviation: float
    accuracy: float
    accuracy_deviation: float
    agreement: float
    agreement_deviation: float
    dense_accuracy: float
    num_folds: int

    @classmethod
    def of(cls, found: CrossValidation) -> "UnseenPoint":
        """From a target's folds, each by its weight."""
        tokens, answers = found.column("num_tokens"), found.column("num_answers")
        kl, agreement = found.column("kl"), found.column("agreement")
        accuracy, dense = found.column("accuracy"), found.column("accuracy", dense=True)
        mean = float(np.average(kl, weights=tokens))
        return cls(
            log_kl=log_kl(found.kl),
            gap=log_kl(mean) - log_kl(found.kl),
            deviation=max(_deviation(kl, tokens) / max(mean, 1e-12), LEAST_DEVIATION),
            accuracy=float(np.average(accuracy, weights=answers)),
            accuracy_deviation=_share_deviation(dense - accuracy, answers),
            agreement=float(np.average(agreement, weights=tokens)),
            agreement_deviation=_share_deviation(agreement, tokens),
            dense_accuracy=float(np.average(dense, weights=answers)),
            num_folds=len(found.folds),
        )

    @property
    def gain_of_twice(self) -> float:
        """About by which fraction twice as many conversations lower the KL on unseen ones.

        What a fit of n data gains on its own, c / n, it loses on others (Akaike; Murata et al. 1994), so the gap is
        2 c / n, and of what is lost on others twice the data give back half: a quarter of the gap.
        """
        return max(1.0 - math.exp(-self.gap), 0.0) / 4.0

    def expected(self) -> ExpectedQuality:
        """Of this target's best configuration itself: its calibration KL is known, so the gap is all that is not."""
        kl = self.log_kl + self.gap
        error = quantile(self.num_folds)
        return ExpectedQuality(
            kl_of(kl),
            (kl_of(kl - error * self.deviation), kl_of(kl + error * self.deviation)),
            self.accuracy,
            _share_interval(self.accuracy, error * self.accuracy_deviation),
            self.agreement,
            _share_interval(self.agreement, error * self.agreement_deviation),
        )


@dataclass(frozen=True, slots=True)
class UnseenShare:
    """A share on unseen conversations: what to add to the curve's, and the standard deviation around that."""

    offset: float
    deviation: float


@dataclass(frozen=True)
class Unseen:
    """What `points` [N], at least one, say of all other configurations; the lowest KL first."""

    points: tuple[UnseenPoint, ...]

    @classmethod
    def of(cls, targets: Sequence[CrossValidation]) -> "Unseen | None":
        """None if nothing was cross-validated."""
        if not targets:
            return None
        points = sorted((UnseenPoint.of(target) for target in targets), key=lambda point: point.log_kl)
        return cls(tuple(points))

    def gap(self, at: float) -> tuple[float, float]:
        """What to add to a log KL on calibration conversations, and the standard deviation of an unseen one."""
        return self._local(at, "gap"), self._local(at, "deviation")

    def share(self, name: str, at: float, curve: ShareCurve) -> UnseenShare:
        """Of the share of that `name`, at a log KL on calibration conversations; `curve` is fitted to those."""
        near = self._near(at)
        offsets = [
            getattr(point, name) - float(curve(np.array([point.log_kl + point.gap]))[0]) for point in self.points
        ]
        deviations = [getattr(point, f"{name}_deviation") for point in self.points]
        return UnseenShare(float(near @ offsets), float(near @ deviations))

    @property
    def dense_accuracy(self) -> float:
        """Exact match of the dense model on the calibration conversations: what predicted ones are relative to."""
        return self.points[0].dense_accuracy

    @property
    def quantile(self) -> float:
        """Standard deviations from the mean to each end of an interval."""
        return quantile(min(point.num_folds for point in self.points))

    def _local(self, at: float, name: str) -> float:
        return float(self._near(at) @ [getattr(point, name) for point in self.points])

    def _near(self, at: float) -> FloatArray:
        """[N] weights of the points for `at`: Gaussian in log KL, together 1; the nearest has all of it far away."""
        apart = -0.5 * ((np.array([point.log_kl for point in self.points]) - at) / SPREAD_BANDWIDTH) ** 2
        weights = np.exp(apart - apart.max())
        shares: FloatArray = weights / weights.sum()
        return shares

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        return {"points": [asdict(point) for point in self.points]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Unseen":
        """Raises KeyError, TypeError or ValueError for a document of another form."""
        points = tuple(UnseenPoint(**point) for point in data["points"])
        if not points or not all(math.isfinite(x) for point in points for x in asdict(point).values()):
            raise ValueError(f"what is known of unseen conversations is a point or more, of finite figures: {points}")
        return cls(points)


def quantile(num_folds: int) -> float:
    """Standard errors from the mean to each end of a 90% interval: Student's t, for errors known from so many folds."""
    return float(stdtrit(num_folds - 1, 0.5 + COVERAGE / 2.0))


def _share_interval(share: float, error: float) -> tuple[float, float]:
    return max(share - error, 0.0), min(share + error, 1.0)


def _deviation(values: FloatArray, weights: FloatArray) -> float:
    """Of the weighted mean of `values` [F] on other conversations: its own error, and theirs, which is as large."""
    shares = weights / weights.sum()
    spread = shares * (values - shares @ values)
    return float(np.sqrt(2.0 * len(values) / (len(values) - 1) * (spread @ spread)))


def _share_deviation(values: FloatArray, counts: FloatArray) -> float:
    """The same of a share [F] of so many answers or tokens each."""
    return max(_deviation(values, counts), math.sqrt(2.0 * LEAST_VARIANCE / counts.sum()))
