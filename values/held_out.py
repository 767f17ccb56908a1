"""Residuals of cross-validation, and its folds: groups of samples of about the same retention.

A search visits one retention after another, so samples come in groups. Leaving out one sample tells the error near
searched targets, since its group stays in the fit; leaving out its whole group tells the error at a target that was
never searched.
Letters: N samples, R of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray, IntArray

GROUP_RETENTION = 0.01
"""Range of retention of one group: what a search leaves unused of its budget."""


@dataclass(frozen=True, eq=False)
class HeldOutResiduals:
    """Residuals of samples [R], each predicted by a fit that does not contain it.

    Attributes:
        errors: measured less predicted log KL.
        deviations: their standard deviations as predicted.
    """

    errors: FloatArray
    deviations: FloatArray

    def at(self, index: IntArray | NDArray[np.bool_]) -> "HeldOutResiduals":
        """The samples of `index`."""
        return HeldOutResiduals(self.errors[index], self.deviations[index])

    def shifted(self, by: FloatArray) -> "HeldOutResiduals":
        """Of what was measured `by` [R] more log KL."""
        return HeldOutResiduals(self.errors + by, self.deviations)

    @property
    def scores(self) -> FloatArray:
        """Standardised residuals [R]: errors over deviations."""
        scores: FloatArray = self.errors / np.maximum(self.deviations, 1e-12)
        return scores


def retention_groups(retention: FloatArray, searched: NDArray[np.bool_]) -> IntArray:
    """The group [N] of each sample, from 0 in the order of `retention` [N]; -1 for those not `searched` [N]."""
    groups = np.full(len(retention), -1, dtype=np.int64)
    index = np.flatnonzero(searched)
    number, start = -1, -np.inf
    for sample in index[np.argsort(retention[index], kind="stable")]:
        if retention[sample] - start > GROUP_RETENTION:
            number, start = number + 1, retention[sample]
        groups[sample] = number
    return groups


def inner_groups(groups: IntArray, least: int) -> NDArray[np.bool_]:
    """bool [R]: samples in neither the first nor the last of `groups` [R]; without those, a fit would extrapolate.

    All samples if fewer than `least` are left.
    """
    inner: NDArray[np.bool_] = (groups > groups.min()) & (groups < groups.max())
    return inner if inner.sum() >= least else np.ones_like(inner)
