"""Cross-validation of a search: what it would have chosen without a fold of the data, judged on that fold.

What a search chooses is too good on the data that it chose by: it is the luckiest of hundreds there. On a fold that had
no part in the choice it is not (Stone 1974; Cawley and Talbot, JMLR 11, 2010). Over all folds every conversation is
unseen once, and since every score is stored by fold, nothing has to be measured for it.

Letters: F folds, n scored choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.space import Choice

NUM_CHOSEN = 2
"""Choices that are judged on each fold: the mean of the best two says the same as the best one, with less noise."""


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Of one target.

    Attributes:
        kl: the least that the search found on all its data.
        folds: what was chosen without each fold, on that fold [F]; means over the choices.
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
        """Raises KeyError or TypeError for a document of another form."""
        folds, dense = (tuple(FoldMetrics(*fold) for fold in data[name]) for name in ("folds", "dense"))
        return cls(data["kl"], folds, dense)

    def column(self, name: str, *, dense: bool = False) -> FloatArray:
        """[F] the metric of that name on every fold."""
        return np.array([getattr(fold, name) for fold in (self.dense if dense else self.folds)], dtype=np.float64)


def judged_without_each(scored: Mapping[Choice, Metrics]) -> tuple[FoldMetrics, ...]:
    """For each fold, what the `NUM_CHOSEN` of n choices that have the least KL on all the others are worth on it.

    Nothing if one of the scores is not by fold.
    """
    found = [metrics.folds for metrics in scored.values() if metrics.folds is not None]
    if not found or len(found) < len(scored):
        return ()
    kl = np.array([[fold.kl * fold.num_tokens for fold in folds] for folds in found])  # [n, F] sums over tokens
    others = kl.sum(axis=1, keepdims=True) - kl
    best: list[list[int]] = np.argsort(others, axis=0, kind="stable")[:NUM_CHOSEN].T.tolist()
    return tuple(_mean([found[index][fold] for index in chosen]) for fold, chosen in enumerate(best))


def _mean(folds: Sequence[FoldMetrics]) -> FoldMetrics:
    """Of several choices on one fold, which has equal numbers of tokens and answers for all."""
    kl, accuracy, agreement = np.mean([fold[:3] for fold in folds], axis=0).tolist()
    return FoldMetrics(kl, accuracy, agreement, folds[0].num_tokens, folds[0].num_answers)
