"""Cross-validation of a search: what it would have chosen without a fold of the data, judged on that fold.

What a search chooses is too good on the data that it chose by, twice over: its configuration is the luckiest of
hundreds there, and the channels that each layer keeps are those that mattered there. Both are undone on a fold that
neither the choice nor the ranking has seen (nested cross-validation, Cawley and Talbot, JMLR 11, 2010). Over all folds
every conversation is unseen once.

Letters: F folds, M choices a fold.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pruning.arrays import FloatArray
from pruning.measuring.metrics import Metrics
from pruning.planning.space import Choice

NUM_CHOSEN = 2
"""Choices that are judged on each fold: the mean of the best two says the same as the best one, with less noise."""


@dataclass(frozen=True, slots=True)
class FoldScore:
    """What was chosen without one fold, on that fold; means over the M choices.

    Attributes:
        num_tokens, num_answers: of the fold.
        kl: with the channels that are kept ranked without the fold.
        kl_ranked: of the same choices, with the model's own ranking, which may have seen the fold.
        accuracy, agreement: with the ranking without the fold, as in `Metrics`.
        dense_accuracy: of the dense model there.
    """

    num_tokens: int
    num_answers: int
    kl: float
    kl_ranked: float
    accuracy: float
    agreement: float
    dense_accuracy: float


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Of one target: the least KL that the search found on all its data, and what each fold says [F]."""

    kl: float
    folds: tuple[FoldScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        return asdict(self) | {"folds": [asdict(fold) for fold in self.folds]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CrossValidation":
        return cls(data["kl"], tuple(FoldScore(**fold) for fold in data["folds"]))

    def column(self, name: str) -> FloatArray:
        """[F] the field of that name of every fold."""
        return np.array([getattr(fold, name) for fold in self.folds], dtype=np.float64)


def chosen_without_each(scored: Mapping[Choice, Metrics]) -> tuple[tuple[Choice, ...], ...]:
    """For each fold the `NUM_CHOSEN` choices of least KL on all the others together; none if a KL is not by fold."""
    parts = [metrics.kl_parts for metrics in scored.values() if metrics.kl_parts is not None]
    if not parts or len(parts) < len(scored):
        return ()
    by_fold = np.array(parts)  # [n, F]
    others = by_fold.sum(axis=1, keepdims=True) - by_fold
    best: list[list[int]] = np.argsort(others, axis=0, kind="stable")[:NUM_CHOSEN].T.tolist()
    choices = list(scored)
    return tuple(tuple(choices[index] for index in fold) for fold in best)
