"""Conformal quantiles and intervals, by hand."""

import math

import pytest
import torch

from policy_model.calibration import Calibration, kl_of
from policy_model.encoding import log_kl


def test_quantiles_have_the_finite_sample_correction() -> None:
    scores = torch.arange(-19.0, 20.0) / 10.0  # 39 of them: rank ceil(40 x 0.95) = 38 from either end
    calibration = Calibration.measure(scores, noise=0.1)
    assert calibration.low == pytest.approx(-1.8)
    assert calibration.high == pytest.approx(1.8)
    assert calibration.num_scores == 39


def test_the_interval_holds_the_prediction_even_if_all_scores_have_one_sign() -> None:
    calibration = Calibration.measure(torch.full((30,), 5.0), noise=0.1)
    low, high = calibration.interval(log_kl(0.1), 0.0)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1 * math.exp(0.5), rel=1e-4)


def test_the_interval_widens_away_from_the_samples() -> None:
    calibration = Calibration(low=-2.0, high=1.0, noise=0.03, num_scores=40)
    near, far = calibration.interval(log_kl(0.1), 0.0), calibration.interval(log_kl(0.1), 0.04)
    assert near == pytest.approx((0.1 * math.exp(-0.06), 0.1 * math.exp(0.03)), rel=1e-4)
    assert far == pytest.approx((0.1 * math.exp(-0.1), 0.1 * math.exp(0.05)), rel=1e-4)  # hypot(0.03, 0.04) = 0.05


@pytest.mark.parametrize("kl", [0.0, 1e-7, 0.01, 3.0])
def test_kl_of_inverts_log_kl(kl: float) -> None:
    assert kl_of(log_kl(kl)) == pytest.approx(kl, rel=1e-6, abs=1e-12)
