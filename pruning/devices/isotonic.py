"""Isotonic regression: the non-decreasing sequence nearest to a measured one, in the least-squares sense."""

from collections.abc import Sequence

import numpy as np

from pruning.arrays import FloatArray


def non_decreasing(values: Sequence[float] | FloatArray) -> FloatArray:
    """The fit of `values` [W], by pooling adjacent violators (Ayer et al. 1955): each block becomes its mean."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        means.append(float(value))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, count = means.pop(), counts.pop()
            pooled = counts[-1] + count
            means[-1] = (means[-1] * counts[-1] + mean * count) / pooled
            counts[-1] = pooled
    fit: FloatArray = np.repeat(means, counts)
    return fit
