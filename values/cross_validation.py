"""Cross-validation of a search: of what was scored, the best without a fold of the data, judged on that fold.

What a search chooses is too good on the data that it chose by: it is the luckiest of hundreds there. On a fold that had
no part in the choice it is not (Stone 1974; Cawley and Talbot, JMLR 11, 2010). Over all folds every conversation is
unseen once, and since every score is stored by fold, nothing has to be measured for it. What was scored in the first
place was still proposed by scores of all folds: to search anew without each would cost as many searches.

Letters: F folds, n scored configurations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray
from pruning.data.folds import MIN_FOLDS
from pruning.measuring.metrics import FoldMetrics, Metrics


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Of one target.

    Attributes:
        kl: of the best configuration on all the data.
        score: its score there, the least that was found.
        folds: what is best without each fold, on that fold [F].
        dense: the dense model on each fold [F].
    """

    kl: float
    score: float
    folds: tuple[FoldMetrics, ...]
    dense: tuple[FoldMetrics, ...]

    @classmethod
    def of(cls, scored: Sequence[Metrics], dense: Metrics) -> "CrossValidation | None":
        """Of all that was scored for a target; None where that says nothing: see `judged_without_each`."""
        held_out = judged_without_each(scored)
        if not held_out or dense.folds is None or len(dense.folds) != len(held_out):
            return None
        best = min(scored, key=lambda metrics: metrics.score)
        return cls(best.kl, best.score, held_out, dense.folds)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        folds, dense = ([list(fold) for fold in found] for found in (self.folds, self.dense))
        return {"kl": self.kl, "score": self.score, "folds": folds, "dense": dense}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CrossValidation":
        """Also of those that were stored when KL was the score.

        Raises KeyError, TypeError or ValueError for a document of another form, or impossible figures.
        """
        folds, dense = (tuple(FoldMetrics(*fold) for fold in data[name]) for name in ("folds", "dense"))
        if len(folds) != len(dense) or len(folds) < MIN_FOLDS:
            raise ValueError(f"{len(folds)} folds, and {len(dense)} of the dense model")
        kl, score = float(data["kl"]), float(data.get("score", data["kl"]))
        for figures in ([kl, score], *folds, *dense):
            if not all(x is None or (math.isfinite(x) and x >= 0) for x in figures):
                raise ValueError(f"a fold has finite figures from 0 on, not {figures}")
        if any(fold.num_tokens < 1 or fold.num_answers < 1 for fold in folds):
            raise ValueError("a fold has tokens and answers")
        return cls(kl, score, folds, dense)

    def column(self, name: str, *, dense: bool = False) -> FloatArray:
        """[F] the metric of that name on every fold."""
        return np.array([getattr(fold, name) for fold in (self.dense if dense else self.folds)], dtype=np.float64)


def judged_without_each(scored: Sequence[Metrics]) -> tuple[FoldMetrics, ...]:
    """For each fold, what the one of n configurations that scores least on all the others is worth on it.

    Nothing if one of the scores is not by fold, or was by other folds.
    """
    found = [metrics.folds for metrics in scored if metrics.folds is not None]
    if not found or len(found) < len(scored) or len({tuple(x.num_tokens for x in folds) for folds in found}) > 1:
        return ()
    # Of equal folds, the least sum over tokens is the least score, whether of roots or of KL.
    by_kl = any(metrics.is_scored_by_kl for metrics in scored)
    sums = np.array([[(x.kl if by_kl else x.root_kl or 0.0) * x.num_tokens for x in folds] for folds in found])
    best = np.argmin(sums.sum(axis=1, keepdims=True) - sums, axis=0)
    return tuple(found[index][fold] for fold, index in enumerate(best.tolist()))
