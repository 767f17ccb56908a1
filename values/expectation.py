"""What to expect of a configuration: of unseen conversations where cross-validation says how, else of calibration.

Two errors are independent, so their squares add up: that of the values, which is conformal and not symmetric, and that
of another set of conversations.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from values.calibration import Calibration, kl_of
from values.shares import ShareIntervals
from values.unseen import Unseen

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """A configuration as the values judge it: log KL on the calibration conversations and its standard deviation.

    `chosen`: it is the predictor's own choice, and so was chosen by those conversations.
    """

    log_kl: float
    deviation: float
    chosen: bool


def expected_kl(calibration: Calibration, judged: Judged, unseen: Unseen | None) -> tuple[float, Bounds]:
    """KL in nats, and its 90% interval."""
    below, above = calibration.errors(judged.log_kl, judged.deviation, chosen=judged.chosen)
    center = judged.log_kl
    if unseen is not None:
        gap, deviation = unseen.gap(judged.log_kl)
        center += gap
        below, above = _wider(below, above, unseen.quantile * deviation)
    return kl_of(center), (kl_of(center + below), kl_of(center + above))


def expected_share(
    name: Literal["accuracy", "agreement"], shares: ShareIntervals | None, judged: Judged, unseen: Unseen | None
) -> tuple[float, Bounds] | tuple[None, None]:
    """The share of that `name` in [0, 1], and its 90% interval; (None, None) where `shares` say nothing of it."""
    if shares is None:
        return None, None
    if unseen is None:
        return shares.expected(judged.log_kl, judged.deviation, chosen=judged.chosen)
    gap, _ = unseen.gap(judged.log_kl)
    found = unseen.share(name, judged.log_kl, shares.curve)
    share = float(shares.curve(np.array([judged.log_kl + gap]))[0]) + found.offset
    below, above = shares.errors(judged.log_kl, judged.deviation, chosen=judged.chosen)
    below, above = _wider(below, above, unseen.quantile * found.deviation)
    return _share(share), (_share(share + below), _share(share + above))


def _wider(below: float, above: float, error: float) -> Bounds:
    return -math.hypot(below, error), math.hypot(above, error)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
