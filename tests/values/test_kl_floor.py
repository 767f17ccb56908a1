"""Floors under logarithms of KL."""

import math

import numpy as np
import pytest

from values.kl_floor import KL_FLOOR_NATS, log_kl, relative_floor


def test_log_kl_is_finite_at_zero_and_below() -> None:
    assert log_kl(0.0) == log_kl(-1e-5) == math.log(KL_FLOOR_NATS)
    assert log_kl(0.5) == pytest.approx(math.log(0.5), abs=1e-5)


def test_a_floor_follows_the_scale_and_is_never_zero() -> None:
    assert relative_floor(0.01, np.array([[3.0, 1.0], [200.0, 0.0]])) == 2.0
    assert relative_floor(0.01, np.zeros((2, 2))) > 0.0
