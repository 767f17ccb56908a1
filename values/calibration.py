"""How far off a prediction may be: conformal intervals of KL, exact match and agreement.

What scores are and what lies between their quantiles is in `quantiles.py`, which samples they are of in
`judged_samples.py`, how shares follow from KL in `shares.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray
from values.judged_samples import JudgedSamples
from values.kl_floor import KL_FLOOR_NATS
from values.quantiles import COVERAGE, Quantiles
from values.shares import ShareCurve, ShareIntervals

LEAST_MEASURED = 20
"""Samples with a share, for there to be an interval of it: those of 90% need 19 scores."""

TYPICAL = (0.1, 0.9)
"""Quantiles of log KL between which samples with a share must reach, if not all have it: a curve through those of one
target says nothing of others."""


@dataclass(frozen=True)
class Calibration:
    """Intervals of KL: `plan` for what the predictor chose, `sample` for any other configuration; and of the shares.

    `accuracy` is None where exact match says nothing, `agreement` where too few samples have it.
    """

    plan: Quantiles
    sample: Quantiles
    accuracy: ShareIntervals | None
    agreement: ShareIntervals | None = None
    coverage: float = COVERAGE

    @classmethod
    def measure(cls, judged: JudgedSamples, accuracy: FloatArray | None, agreement: FloatArray) -> "Calibration":
        """From samples [R] with their exact match, if that says anything, and their agreement [R], NaN where it was
        not measured."""
        alone, inner = judged.alone.scores, judged.grouped.at(judged.inner).scores
        return cls(
            plan=judged.quantiles_of_plans(alone, inner),
            sample=judged.quantiles_of_samples(inner),
            accuracy=None if accuracy is None else ShareIntervals.measure(accuracy, judged),
            agreement=_where_measured(agreement, judged),
        )

    def errors(self, log_kl: float, deviation: float, *, chosen: bool) -> tuple[float, float]:
        """From a predicted log KL to the ends of its interval, of a plan or (not `chosen`) of any configuration.

        At most 0, and at least 0.
        """
        low, high = (self.plan if chosen else self.sample).at(log_kl)
        return low * deviation, high * deviation

    def to_dict(self) -> dict[str, Any]:
        """Plain types. What is not predicted is left out, so predictors of old samples are what they always were."""
        document: dict[str, Any] = {"plan": asdict(self.plan), "sample": asdict(self.sample)}
        if self.accuracy is not None:
            document |= {
                "plan_accuracy": asdict(self.accuracy.plan),
                "sample_accuracy": asdict(self.accuracy.sample),
                "curve": asdict(self.accuracy.curve),
            }
        if self.agreement is not None:
            document["agreement"] = self.agreement.to_dict()
        return document | {"coverage": self.coverage}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibration":
        """Also of predictors from before there was agreement, and of those that had one interval of accuracy."""
        agreement = data.get("agreement")
        return cls(
            plan=Quantiles.from_dict(data["plan"]),
            sample=Quantiles.from_dict(data["sample"]),
            accuracy=_accuracy_from(data) if "curve" in data else None,
            agreement=None if agreement is None else ShareIntervals.from_dict(agreement),
            coverage=data["coverage"],
        )


def _where_measured(agreement: FloatArray, judged: JudgedSamples) -> ShareIntervals | None:
    """Intervals from the samples with an `agreement` [R]; None where those are too few, or of part of the range."""
    known = np.isfinite(agreement)
    if known.sum() < LEAST_MEASURED:
        return None
    least, most = np.quantile(judged.log_kl, TYPICAL)
    if judged.log_kl[known].min() > least or judged.log_kl[known].max() < most:
        return None
    return ShareIntervals.measure(agreement[known], judged.at(known))


def _accuracy_from(data: Mapping[str, Any]) -> ShareIntervals:
    both = data.get("accuracy")
    return ShareIntervals(
        plan=Quantiles.from_dict(both or data["plan_accuracy"]),
        sample=Quantiles.from_dict(both or data["sample_accuracy"]),
        curve=ShareCurve.from_dict(data["curve"]),
    )


def kl_of(log_kl: float) -> float:
    """KL in nats, at least 0: the inverse of `encoding.log_kl`."""
    return max(math.exp(min(log_kl, 50.0)) - KL_FLOOR_NATS, 0.0)
