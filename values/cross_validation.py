"""Cross-validation of a search: of what it scored, the best without a fold of the data, judged on that fold.

What a search chooses is too good on the data that it chose by: it is the luckiest of hundreds there. On a fold that had
no part in the choice it is not (Stone 1974; Cawley and Talbot, JMLR 11, 2010). Over all folds every conversation is
unseen once, and since every score is stored by fold, nothing has to be measured for it. What was scored in the first
place was still proposed by scores of all folds: to search anew without each would cost as many searches.

Letters: F folds, n scored choices.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray
from pruning.data.folds import MIN_FOLDS
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.space import Choice


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Of one target.

    Attributes:
        kl: the least that the search found on all its data.
        folds: what is best without each fold, on that fold [F].
        dense: the dense model on each fold [F].
    """

    kl: float
    folds: tuple[FoldMetrics, ...]
    dense: tuple[FoldMetrics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        return {"kl": self.kl, "folds": [list(x) for x in self.folds], "dense": [list(x) for x in self.dense]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CrossValidation":
        """Raises KeyError, TypeError or ValueError for a document of another form, or impossible figures."""
        folds, dense = (tuple(FoldMetrics(*fold) for fold in data[name]) for name in ("folds", "dense"))
        if len(folds) != len(dense) or len(folds) < MIN_FOLDS:
            raise ValueError(f"{len(folds)} folds, and {len(dense)} of the dense model")
        for figures in ([data["kl"]], *folds, *dense):
            if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
                raise ValueError(f"a fold has finite figures from 0 on, not {figures}")
        if any(fold.num_tokens < 1 or fold.num_answers < 1 for fold in folds):
            raise ValueError("a fold has tokens and answers")
        return cls(float(data["kl"]), folds, dense)

    def column(self, name: str, *, dense: bool = False) -> FloatArray:
        """[F] the metric of that name on every fold."""
        return np.array([getattr(fold, name) for fold in (self.dense if dense else self.folds)], dtype=np.float64)


def judged_without_each(scored: Mapping[Choice, Metrics]) -> tuple[FoldMetrics, ...]:
    """For each fold, what the one of n choices that has the least KL on all the others is worth on it.

    Nothing if one of the scores is not by fold, or was by other folds.
    """
    found = [metrics.folds for metrics in scored.values() if metrics.folds is not None]
    if not found or len(found) < len(scored) or len({tuple(x.num_tokens for x in folds) for folds in found}) > 1:
        return ()
    kl = np.array([[fold.kl * fold.num_tokens for fold in folds] for folds in found])  # [n, F] sums over tokens
    best = np.argmin(kl.sum(axis=1, keepdims=True) - kl, axis=0)
    return tuple(found[index][fold] for fold, index in enumerate(best.tolist()))
