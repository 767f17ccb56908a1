"""Samples as they are judged by values that do not know them, alone or together with all of about their retention.

A search asks for one retention after another, so samples come in groups: a sample's neighbours know nearly all of it,
while of a target that was never searched nothing is known but the groups around it.
Letters: N samples, R of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray, IntArray

GROUP_RETENTION = 0.01
"""Retention that the samples of one group lie within: what a search leaves unused of its budget."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Measured less predicted log KL [R] by values that do not know the sample, and what was expected of that."""

    errors: FloatArray
    deviations: FloatArray

    def at(self, index: IntArray | NDArray[np.bool_]) -> "LeftOut":
        """Those of `index`."""
        return LeftOut(self.errors[index], self.deviations[index])

    @property
    def scores(self) -> FloatArray:
        """[R] errors over what was expected of them."""
        scores: FloatArray = self.errors / np.maximum(self.deviations, 1e-12)
        return scores


def retention_groups(retention: FloatArray, searched: NDArray[np.bool_]) -> IntArray:
    """[N] the group of each sample, numbered from 0 by `retention` [N]; -1 for what was not `searched` [N]."""
    groups = np.full(len(retention), -1, dtype=np.int64)
    index = np.flatnonzero(searched)
    number, start = -1, -np.inf
    for sample in index[np.argsort(retention[index], kind="stable")]:
        if retention[sample] - start > GROUP_RETENTION:
            number, start = number + 1, retention[sample]
        groups[sample] = number
    return groups


def inner_groups(groups: IntArray, least: int) -> NDArray[np.bool_]:
    """bool [R]: neither in the first nor in the last of `groups` [R], which nothing but extrapolation could judge.

    All of them where that leaves fewer than `least`.
    """
    inner: NDArray[np.bool_] = (groups > groups.min()) & (groups < groups.max())
    return inner if inner.sum() >= least else np.ones_like(inner)
