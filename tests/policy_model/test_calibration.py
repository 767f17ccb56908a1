"""Conformal quantiles, intervals and the accuracy curve, by hand."""

import math

import numpy as np
import pytest

from policy_model.calibration import (
    AccuracyCurve,
    Calibration,
    Quantiles,
    chosen_among_neighbours,
    kl_of,
)
from policy_model.encoding import log_kl

CURVE = AccuracyCurve(((math.log(0.01), 0.9), (math.log(1.0), 0.3)), noise=0.05)


def test_quantiles_have_the_finite_sample_correction() -> None:
    quantiles = Quantiles.of(np.arange(-19.0, 20.0) / 10.0)  # 39 of them: rank ceil(40 x 0.95) = 38 from either end
    assert quantiles == Quantiles(low=-1.8, high=1.8, num_scores=39)


def test_accuracy_falls_with_kl_and_has_the_noise_of_its_residuals() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-5.0, 0.0, 500)
    accuracy = 0.4 - 0.1 * x
    noisy = accuracy + rng.normal(0.0, 1.0, 500) * 0.05 * np.sqrt(accuracy * (1.0 - accuracy))
    curve = AccuracyCurve.fit(x, noisy, np.ones(500))
    at = np.linspace(-4.8, -0.2, 30)
    assert (np.diff(curve(at)) <= 0).all()
    np.testing.assert_allclose(curve(at), 0.4 - 0.1 * at, atol=0.04)
    assert curve.noise == pytest.approx(0.05, rel=0.2)


def test_the_interval_holds_the_prediction_even_if_all_scores_have_one_sign() -> None:
    one_sided = Quantiles.of(np.full(30, 5.0))
    calibration = Calibration(one_sided, one_sided, one_sided, CURVE)
    low, high = calibration.interval(log_kl(0.1), 0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1 * math.exp(0.5), rel=1e-4)


def test_the_interval_widens_with_the_expected_error() -> None:
    calibration = Calibration(Quantiles(-1.0, 0.5, 40), Quantiles(-2.0, 1.0, 20), Quantiles(-1.0, 1.0, 20), CURVE)
    near, far = calibration.interval(log_kl(0.1), 0.03), calibration.interval(log_kl(0.1), 0.05)
    assert near == pytest.approx((0.1 * math.exp(-0.06), 0.1 * math.exp(0.03)), rel=1e-4)
    assert far == pytest.approx((0.1 * math.exp(-0.1), 0.1 * math.exp(0.05)), rel=1e-4)
    usual = calibration.interval(log_kl(0.1), 0.05, chosen=False)
    assert usual == pytest.approx((0.1 * math.exp(-0.05), 0.1 * math.exp(0.025)), rel=1e-4)


def test_expected_accuracy_is_read_off_the_curve() -> None:
    quantiles = Quantiles(-1.0, 2.0, 40)
    calibration = Calibration(quantiles, quantiles, quantiles, CURVE)
    accuracy, (low, high) = calibration.expected_accuracy(math.log(0.1), 0.0)
    assert accuracy == pytest.approx(0.6)
    spread = 0.05 * math.sqrt(0.6 * 0.4)
    assert [low, high] == pytest.approx([0.6 - spread, 0.6 + 2 * spread])
    _, wide = calibration.expected_accuracy(math.log(0.1), 0.5)
    assert wide[0] < low
    assert calibration.expected_accuracy(math.log(0.01), 30.0)[1] == pytest.approx((0.6, 1.0), abs=0.01)


def test_a_share_of_every_neighbourhood_counts_as_chosen() -> None:
    retention = np.repeat([0.3, 0.6], 300)
    predicted = np.concatenate([np.arange(300.0), 1000.0 - np.arange(300.0)])
    assert np.flatnonzero(chosen_among_neighbours(predicted, retention)).tolist() == [*range(30), *range(570, 600)]


def test_of_few_samples_more_count_as_chosen() -> None:
    assert chosen_among_neighbours(np.arange(80.0), np.full(80, 0.5)).sum() == 40
    assert chosen_among_neighbours(np.arange(20.0), np.full(20, 0.5)).sum() == 20


def test_coverage_on_samples_of_the_same_kind() -> None:
    """Calibrated on half of them, the interval holds nine in ten of the other half."""
    rng = np.random.default_rng(1)
    truth = rng.normal(-2.0, 1.0, 4000)
    deviation = rng.uniform(0.05, 0.3, 4000)
    error = rng.standard_t(4, 4000) * deviation
    kept = rng.random(4000) < 0.5
    calibration = Calibration.measure(
        truth[kept],
        np.exp(-np.exp(truth[kept])),
        error[kept],
        deviation[kept],
        rng.random(kept.sum()),
        np.ones(4000)[kept],
    )
    inside = [
        low <= math.exp(t) <= high
        for t, e, d in zip(truth[~kept], error[~kept], deviation[~kept], strict=True)
        for low, high in [calibration.interval(t - e, d, chosen=False)]
    ]
    assert 0.87 < np.mean(inside) < 0.93


def test_the_document_is_read_back_as_it_was() -> None:
    calibration = Calibration(Quantiles(-1.0, 0.5, 40), Quantiles(-2.0, 1.0, 20), Quantiles(-1.0, 1.0, 20), CURVE)
    assert Calibration.from_dict(calibration.to_dict()) == calibration


@pytest.mark.parametrize("kl", [0.0, 1e-7, 0.01, 3.0])
def test_kl_of_inverts_log_kl(kl: float) -> None:
    assert kl_of(log_kl(kl)) == pytest.approx(kl, rel=1e-6, abs=1e-12)
