"""Where KL stops telling anything: logarithms need a least value, and there is one for each scale that is known."""

import math

from pruning.arrays import FloatArray

KL_FLOOR_NATS = 1e-6
"""Added to a KL in nats before its logarithm: below it a KL in float32 is rounding noise, and the dense model has 0."""

RELATIVE_KL_FLOOR = 1e-9
"""Of the largest sensitivity: a search does not know the scale of its metric, so what is noise is relative to it."""

RELATIVE_SENSITIVITY_FLOOR = 1e-5
"""Likewise, where sensitivities are compared by their logarithms: those below tell nothing apart, and without a floor
they would be all of the spread. Higher than that of KL, which may be measured far below any one sensitivity."""


def log_kl(kl_nats: float) -> float:
    """Natural logarithm of a KL, finite also for 0 and for the slightly negative values of float32 rounding."""
    return math.log(max(kl_nats, 0.0) + KL_FLOOR_NATS)


def relative_floor(fraction: float, sensitivity: FloatArray) -> float:
    """`fraction` of the largest `sensitivity`; positive even where a scan says nothing, so that a logarithm exists."""
    return max(fraction * float(sensitivity.max()), 1e-300)
