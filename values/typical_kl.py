"""The KL that goes with a score: what values learn instead of the measured KL, of which a few tokens make most.

    typical(x) = x + local mean of (log KL - log score) over samples, by log score

It grows with the score, so what is best stays best, and it is a KL in nats, so all that is said in KL stays true of it
on average. Samples from before there were scores other than KL are their own typical KL.

Letters: N samples, P points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pruning.arrays import FloatArray
from pruning.measuring.metrics import Metrics
from storage.records import Sample
from values.kl_floor import log_kl
from values.quantiles import MAX_CURVE_POINTS, SPREAD_BANDWIDTH


def scored_alike(samples: Sequence[Sample]) -> list[Sample]:
    """`samples` of one set of conversations with scores of one kind: if one of them is from before root KL, KL is the
    score of all, as the memo has it for searches (`engines.memo`)."""
    if not any(sample.metrics.is_scored_by_kl for sample in samples):
        return list(samples)
    return [replace(sample, metrics=sample.metrics.scored_by_kl()) for sample in samples]


SCORE_FLOOR_NATS = 1e-7
"""Added to a score before its logarithm: what rounding of float32 alone makes of a mean of roots, squared."""


@dataclass(frozen=True, eq=False)
class TypicalKl:
    """Log KL as a growing function of log score, linear between points [P]; the same where there are none."""

    log_score: FloatArray
    excess: FloatArray

    @classmethod
    def of(cls, samples: Sequence[Metrics]) -> "TypicalKl":
        """What `samples` [N] say. If one of them has no score of its own, KL is the score of all."""
        if not samples or any(metrics.is_scored_by_kl for metrics in samples):
            return cls(np.empty(0), np.empty(0))
        score = np.array([_log(metrics.score) for metrics in samples])
        excess = np.array([log_kl(metrics.kl) for metrics in samples]) - score
        points = np.unique(np.linspace(score.min(), score.max(), MAX_CURVE_POINTS))
        apart = -0.5 * ((points[:, None] - score) / SPREAD_BANDWIDTH) ** 2
        weights = np.exp(apart - apart.max(axis=1, keepdims=True))
        local = weights @ excess / weights.sum(axis=1)
        # Two scores never change places, whatever a local mean does.
        grown = np.maximum.accumulate(points + local + np.linspace(0.0, 1e-6, len(points)))
        return cls(points, grown - points)

    def __call__(self, metrics: Metrics) -> float:
        """Log KL [nats] that is typical of what scores as `metrics`."""
        if not len(self.log_score):
            return log_kl(metrics.kl)
        return self.at(metrics.score)

    def at(self, score: float) -> float:
        """Log KL [nats] that is typical of a score."""
        if not len(self.log_score):
            return log_kl(score)
        x = _log(score)
        return x + float(np.interp(x, self.log_score, self.excess))


def _log(score: float) -> float:
    return math.log(score + SCORE_FLOOR_NATS)
