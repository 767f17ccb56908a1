"""Rankings that were learnt without one fold of the data each, from statistics of every fold alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.measuring.importance import ranking_of
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.ranking import Ranking

_MOMENT = "second_moment"
"""The end of the names of what a ranking reads of data: means over tokens. The rest of it is norms of weights."""


def rankings_without_each(
    folds: Sequence[ModelStatistics], tokens: Sequence[int], anatomy: ModelAnatomy
) -> list[Ranking]:
    """For each fold the ranking that a model would be registered with on all the others together.

    One pass over the data is enough for all of them: a second moment over several folds is the mean of theirs.

    Args:
        folds: statistics of kind ACTIVATIONS of at least two folds.
        tokens: how many each is a mean over.
    """
    weights = np.array(tokens, dtype=np.float64)
    rankings = []
    for left_out in range(len(folds)):
        kept = np.where(np.arange(len(folds)) == left_out, 0.0, weights)
        arrays = _pooled([fold.arrays for fold in folds], kept / kept.sum())
        rankings.append(ranking_of(ModelStatistics(StatisticsKind.ACTIVATIONS, anatomy.fingerprint, arrays), anatomy))
    return rankings


def _pooled(folds: Sequence[Mapping[str, FloatArray]], shares: FloatArray) -> dict[str, FloatArray]:
    """What a ranking reads, of folds together that have `shares` [F] of the tokens."""
    return {
        name: np.average([fold[name] for fold in folds], axis=0, weights=shares) if name.endswith(_MOMENT) else array
        for name, array in folds[0].items()
        if name.endswith((_MOMENT, "_norm"))
    }
