"""Conformal quantiles, intervals and the curves of exact match and agreement, by hand."""

import json
import math

import numpy as np
import pytest

from values.calibration import Calibration, kl_of
from values.expectation import Judged, expected_kl
from values.held_out import HeldOutResiduals, inner_groups, retention_groups
from values.judged_samples import JudgedSamples
from values.kl_floor import log_kl
from values.quantiles import Quantiles
from values.shares import ShareCurve, ShareIntervals

CURVE = ShareCurve(((math.log(0.01), 0.9), (math.log(1.0), 0.3)), noise=0.05)


def interval_of(
    calibration: Calibration, log_kl: float, deviation: float, *, chosen: bool = True
) -> tuple[float, float]:
    """Of calibration conversations."""
    return expected_kl(calibration, Judged(log_kl, deviation, chosen), None)[1]


def test_quantiles_have_the_finite_sample_correction() -> None:
    # 39 of them, all of one size: rank ceil(40 x 0.95) = 38 from either end, in units of that size.
    scores = np.where(np.arange(39) < 37, 1.0, -1.0)
    quantiles = Quantiles.of(scores, np.full(39, -3.0))
    assert (quantiles.low, quantiles.high) == pytest.approx((-1.0, 1.0))
    assert quantiles.num_scores == 39
    assert quantiles.at(-3.0) == pytest.approx((-1.0, 1.0))
    three = Quantiles.of(np.where(np.arange(39) < 38, 1.0, -1.0), np.full(39, -3.0))
    assert three.low == pytest.approx(1.0)  # only one of 39 is negative: the second lowest is not
    assert three.at(-3.0)[0] == 0.0  # but an interval holds its prediction


def test_scores_count_by_their_weights() -> None:
    scores = np.concatenate([np.full(60, 1.0), np.full(60, 3.0)])
    even = Quantiles.of(scores, np.zeros(120))
    mostly = Quantiles.of(scores, np.zeros(120), np.repeat([1.0, 1e-9], 60))
    assert even.at(0.0)[1] == pytest.approx(3.0, rel=0.02)
    assert mostly.at(0.0)[1] == pytest.approx(1.0, rel=0.02)


def test_intervals_are_wide_where_scores_are() -> None:
    """Scores of 4 at low KL, of 1 at high KL, in between what lies in between."""
    rng = np.random.default_rng(2)
    x = np.repeat([-6.0, 0.0], 2000)
    size = np.where(x < -3.0, 4.0, 1.0)
    quantiles = Quantiles.of(rng.normal(0.0, 1.0, 4000) * size, x)
    for at, scale in ((-6.0, 4.0), (0.0, 1.0), (-9.0, 4.0), (5.0, 1.0)):
        assert quantiles.at(at) == pytest.approx((-1.645 * scale, 1.645 * scale), rel=0.1)
    assert quantiles.at(0.0)[1] < quantiles.at(-3.0)[1] < quantiles.at(-6.0)[1]


def test_accuracy_falls_with_kl_and_has_the_noise_of_its_residuals() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-5.0, 0.0, 500)
    accuracy = 0.4 - 0.1 * x
    noisy = accuracy + rng.normal(0.0, 1.0, 500) * 0.05 * np.sqrt(accuracy * (1.0 - accuracy))
    curve = ShareCurve.fit(x, noisy, np.ones(500))
    at = np.linspace(-4.8, -0.2, 30)
    assert (np.diff(curve(at)) <= 0).all()
    np.testing.assert_allclose(curve(at), 0.4 - 0.1 * at, atol=0.04)
    assert curve.noise == pytest.approx(0.05, rel=0.2)


def test_the_interval_holds_the_prediction_even_if_all_scores_have_one_sign() -> None:
    one_sided = Quantiles.of(np.full(30, 5.0), np.zeros(30))
    calibration = Calibration(one_sided, one_sided, ShareIntervals(one_sided, one_sided, CURVE))
    low, high = interval_of(calibration, log_kl(0.1), 0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1 * math.exp(0.5), rel=1e-4)


def test_the_interval_widens_with_the_expected_error() -> None:
    calibration = calibration_of()
    near, far = interval_of(calibration, log_kl(0.1), 0.03), interval_of(calibration, log_kl(0.1), 0.05)
    assert near == pytest.approx((0.1 * math.exp(-0.06), 0.1 * math.exp(0.03)), rel=1e-4)
    assert far == pytest.approx((0.1 * math.exp(-0.1), 0.1 * math.exp(0.05)), rel=1e-4)
    usual = interval_of(calibration, log_kl(0.1), 0.05, chosen=False)
    assert usual == pytest.approx((0.1 * math.exp(-0.05), 0.1 * math.exp(0.025)), rel=1e-4)


def calibration_of() -> Calibration:
    """Plans: scores from -2 to 1; samples: from -1 to 0.5; accuracy: the same of plans, twice that of samples."""
    accuracy, twice = Quantiles(-1.0, 1.0, 20), Quantiles(-2.0, 2.0, 20)
    shares = ShareIntervals(accuracy, twice, CURVE)
    return Calibration(Quantiles(-2.0, 1.0, 20), Quantiles(-1.0, 0.5, 40), shares)


def test_expected_shares_are_read_off_the_curve() -> None:
    shares = ShareIntervals(Quantiles(-1.0, 2.0, 40), Quantiles(-2.0, 4.0, 40), CURVE)
    accuracy, (low, high) = shares.expected(math.log(0.1), 0.0, chosen=True)
    assert accuracy == pytest.approx(0.6)
    spread = 0.05 * math.sqrt(0.6 * 0.4)
    assert [low, high] == pytest.approx([0.6 - spread, 0.6 + 2 * spread])
    _, others = shares.expected(math.log(0.1), 0.0, chosen=False)
    assert list(others) == pytest.approx([0.6 - 2 * spread, 0.6 + 4 * spread])
    _, wide = shares.expected(math.log(0.1), 0.5, chosen=True)
    assert wide[0] < low
    assert shares.expected(math.log(0.01), 30.0, chosen=True)[1] == pytest.approx((0.6, 1.0), abs=0.01)


def test_groups_are_of_about_one_retention() -> None:
    retention = np.array([0.5, 0.305, 0.3, 0.9, 0.311, 0.4999])
    groups = retention_groups(retention, np.array([True, True, True, False, True, True]))
    assert groups.tolist() == [2, 0, 0, -1, 1, 2]


def test_the_outermost_groups_are_left_alone_if_enough_remains() -> None:
    groups = np.repeat([0, 1, 2, 3], 5)
    assert np.flatnonzero(inner_groups(groups, 10)).tolist() == [*range(5, 15)]
    assert inner_groups(groups, 11).all()


def made_up(seed: int, *, num_groups: int = 30, each: int = 40) -> dict[str, np.ndarray]:
    """Samples of `num_groups` targets, whose errors are partly the target's own: its other samples know that part."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), each)
    truth = np.linspace(-5.0, 0.0, num_groups)[groups] + rng.uniform(0.0, 0.3, len(groups))
    shared = rng.normal(0.0, 0.2, num_groups)[groups]
    own = rng.normal(0.0, 0.05, len(groups))
    accuracy = np.exp(-np.exp(truth)) + 0.05 * shared
    return {
        "groups": groups,
        "truth": truth,
        "own": own,
        "shared": shared,
        "accuracy": np.clip(accuracy, 0.0, 1.0),
        "agreement": np.exp(-0.5 * np.exp(truth + shared)),
    }


def judged(world: dict[str, np.ndarray]) -> JudgedSamples:
    size = len(world["truth"])
    return JudgedSamples(
        world["truth"],
        HeldOutResiduals(world["own"], np.full(size, 0.05)),
        HeldOutResiduals(world["own"] + world["shared"], np.full(size, 0.1)),
        world["groups"],
        np.ones(size),
    )


def measured(world: dict[str, np.ndarray]) -> Calibration:
    return Calibration.measure(judged(world), world["accuracy"], world["agreement"])


def inside(calibration: Calibration, truth: np.ndarray, errors: np.ndarray, deviation: float, chosen: bool) -> float:
    bounds = [interval_of(calibration, t - e, deviation, chosen=chosen) for t, e in zip(truth, errors, strict=True)]
    return float(np.mean([low <= kl_of(t) <= high for t, (low, high) in zip(truth, bounds, strict=True)]))


def test_what_is_new_is_covered_as_often_as_was_promised() -> None:
    """Calibrated in one world of targets, asked about the targets of another."""
    calibration, other = measured(made_up(1)), made_up(2)
    everything = other["own"] + other["shared"]
    assert 0.85 < inside(calibration, other["truth"], everything, 0.1, chosen=False) < 0.95
    # A plan's target is at a searched one or between two: a third of what is shared is unknown, on average.
    third = np.random.default_rng(3).random(30)[other["groups"]] < 1.0 / 3.0
    plans = inside(calibration, other["truth"][third], everything[third], 0.1, chosen=True) / 3.0
    plans += inside(calibration, other["truth"][~third], other["own"][~third], 0.05, chosen=True) * 2.0 / 3.0
    assert 0.85 < plans < 0.95


def test_accuracy_between_targets_is_not_as_sure_as_at_them() -> None:
    calibration = measured(made_up(1))
    assert calibration.accuracy is not None
    here = [calibration.accuracy.expected(-2.0, 0.05, chosen=chosen)[1] for chosen in (True, False)]
    world = made_up(1)
    curve_alone = ShareCurve.fit(world["truth"], world["accuracy"], np.ones(1200))
    assert curve_alone.noise < 0.05  # through the targets' own samples
    assert here[1][1] - here[1][0] > 2.0 * curve_alone.noise * 0.3


def test_agreement_is_judged_as_accuracy_is() -> None:
    """The same numbers give the same intervals, whatever they are shares of."""
    world = made_up(1)
    calibration = Calibration.measure(judged(world), world["agreement"], world["agreement"])
    assert calibration.agreement == calibration.accuracy is not None


def test_agreement_of_new_targets_is_covered_as_often_as_was_promised() -> None:
    agreement, other = measured(made_up(1)).agreement, made_up(2)
    assert agreement is not None
    inside = []
    for truth, error, share in zip(other["truth"], other["own"] + other["shared"], other["agreement"], strict=True):
        low, high = agreement.expected(truth - error, 0.1, chosen=False)[1]
        inside.append(low <= share <= high)
    assert 0.85 < np.mean(inside) < 0.95


def test_agreement_is_learnt_from_the_samples_that_have_it_alone() -> None:
    world = made_up(1)
    known = np.arange(1200) % 3 == 0
    some = Calibration.measure(judged(world), world["accuracy"], np.where(known, world["agreement"], np.nan))
    alone = {name: values[known] for name, values in world.items()}
    assert some.agreement == measured(alone).agreement is not None
    assert some.accuracy == measured(world).accuracy


@pytest.mark.parametrize("known", [np.arange(1200) < 0, np.arange(1200) % 64 == 0, np.arange(1200) < 600])
def test_too_few_or_those_of_a_part_of_the_range_say_nothing_of_agreement(known: np.ndarray) -> None:
    world = made_up(1)
    calibration = Calibration.measure(judged(world), world["accuracy"], np.where(known, world["agreement"], np.nan))
    assert calibration.agreement is None
    assert "agreement" not in calibration.to_dict()
    assert calibration == Calibration.measure(judged(world), world["accuracy"], np.full(1200, np.nan))


def test_the_document_is_read_back_as_it_was() -> None:
    world = made_up(3, num_groups=8, each=10)
    unexact = Calibration.measure(judged(world), None, world["agreement"])
    for calibration in (calibration_of(), measured(world), unexact):
        assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_documents_of_earlier_predictors_are_read() -> None:
    """They had one quantile of accuracy, and no spread."""
    document = calibration_of().to_dict()
    document["accuracy"] = document.pop("plan_accuracy")
    del document["sample_accuracy"]
    for name in ("plan", "sample", "accuracy"):
        del document[name]["spread"]
    calibration = Calibration.from_dict(document)
    assert calibration.plan == Quantiles(-2.0, 1.0, 20)
    assert calibration.accuracy is not None
    assert calibration.accuracy.sample == calibration.accuracy.plan == Quantiles(-1.0, 1.0, 20)
    assert calibration.agreement is None


@pytest.mark.parametrize("kl", [0.0, 1e-7, 0.01, 3.0])
def test_kl_of_inverts_log_kl(kl: float) -> None:
    assert kl_of(log_kl(kl)) == pytest.approx(kl, rel=1e-6, abs=1e-12)
