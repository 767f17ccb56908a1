"""How sure a figure over answers is: the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
chapter 13). Answers are drawn with replacement; what is compared is compared on the same ones."""

from collections.abc import Callable

import numpy as np

from pruning.arrays import FloatArray, IntArray

RESAMPLES = 2000


def resampled(statistic: Callable[[IntArray], float], count: int, *, seed: int = 0) -> FloatArray:
    """[RESAMPLES] values of `statistic`, a function of answers' indices [count], on draws of as many answers."""
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)], dtype=np.float64)


def percentiles(values: FloatArray, level: float) -> tuple[float, float]:
    """Between which the middle `level` (0 to 1) of `values` lie; those that are NaN do not count."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
