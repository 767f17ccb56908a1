"""Isotonic regression: the non-decreasing sequence nearest to a measured one, in the least-squares sense."""

from collections.abc import Sequence

import numpy as np

from pruning.arrays import FloatArray


def non_decreasing(
    values: Sequence[float] | FloatArray, weights: Sequence[float] | FloatArray | None = None
) -> FloatArray:
    """The fit of `values` [N], by pooling adjacent violators (Ayer et al. 1955): each block becomes its mean.

    `weights` [N] are positive; by default all values count the same.
    """
    means: list[float] = []
    totals: list[float] = []
    counts: list[int] = []
    for value, weight in zip(values, [1.0] * len(values) if weights is None else weights, strict=True):
        means.append(float(value))
        totals.append(float(weight))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, total, count = means.pop(), totals.pop(), counts.pop()
            pooled = totals[-1] + total
            means[-1] = (means[-1] * totals[-1] + mean * total) / pooled
            totals[-1] = pooled
            counts[-1] += count
    fit: FloatArray = np.repeat(means, counts)
    return fit
