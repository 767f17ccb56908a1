"""Two models on the same questions: what one keeps of the other's score, and whether the difference may be chance.

McNemar (1947), "Note on the sampling error of the difference between correlated proportions or percentages",
https://doi.org/10.1007/BF02295996: of the questions that one model alone answers, half are each one's if neither is
better. The test here is the exact one, binomial.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.measuring.bootstrap import percentiles, resampled

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class PairedScores:
    """Of N questions.

    Attributes:
        dense, pruned: mean scores.
        percent_of_dense: 100 x pruned / dense; None where the dense model scores nothing.
        interval: 95% of `percent_of_dense`, from questions drawn again; None where some draw scores nothing.
        only_dense, only_pruned: questions that one model alone answers rightly; None if scores are not right or wrong.
        p_value: two-sided, of McNemar's exact test; None likewise.
    """

    questions: int
    dense: float
    pruned: float
    percent_of_dense: float | None
    interval: tuple[float, float] | None
    only_dense: int | None
    only_pruned: int | None
    p_value: float | None


def compare_scores(dense: Sequence[float], pruned: Sequence[float], *, seed: int = 0) -> PairedScores:
    """Scores [N] of both models on the same questions, in the same order.

    Raises InputError unless both have the same number of scores, one at least.
    """
    if len(dense) != len(pruned) or not dense:
        raise InputError("both models must be asked the same questions", values=f"{len(dense)} and {len(pruned)}")
    scores = np.array([dense, pruned], dtype=np.float64)
    of_dense, of_pruned = scores.mean(axis=1).tolist()
    only_dense = only_pruned = p_value = None
    if np.isin(scores, (0.0, 1.0)).all():
        only_dense = int(((scores[0] == 1) & (scores[1] == 0)).sum())
        only_pruned = int(((scores[0] == 0) & (scores[1] == 1)).sum())
        p_value = mcnemar(only_dense, only_pruned)
    return PairedScores(
        questions=len(dense),
        dense=of_dense,
        pruned=of_pruned,
        percent_of_dense=100 * of_pruned / of_dense if of_dense else None,
        interval=_interval(scores, seed),
        only_dense=only_dense,
        only_pruned=only_pruned,
        p_value=p_value,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value, min(1, 2 P[X <= min(b, c)]) for X binomial of b + c and 1/2."""
    both = only_first + only_second
    tail = sum(comb(both, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**both)))


def _interval(scores: FloatArray, seed: int) -> tuple[float, float] | None:
    """Questions are drawn with replacement, of both models together: what they share cancels in the ratio."""

    def percent(drawn: IntArray) -> float:
        dense, pruned = scores[:, drawn].mean(axis=1)
        return float(100 * pruned / dense) if dense > 0 else math.nan

    ratios = resampled(percent, scores.shape[1], seed=seed)
    return None if np.isnan(ratios).any() else percentiles(ratios, LEVEL)
