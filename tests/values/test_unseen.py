"""Expectations of unseen conversations: by hand, and on made-up losses whose unseen mean is known."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from pruning.arrays import FloatArray
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.space import Choice
from values.calibration import Calibration
from values.cross_validation import CrossValidation, judged_without_each
from values.expectation import Judged, expected_kl, expected_share
from values.kl_floor import log_kl
from values.quantiles import Quantiles
from values.shares import ShareCurve, ShareIntervals
from values.unseen import LEAST_DEVIATION, LEAST_VARIANCE, Unseen, UnseenPoint

FOLDS = 8
NO_SPREAD = math.sqrt(2.0 * LEAST_VARIANCE / (FOLDS * 20))
"""Of a share of 20 answers a fold."""
CURVE = ShareCurve(((math.log(0.01), 0.9), (math.log(1.0), 0.3)), noise=0.05)
SHARES = ShareIntervals(Quantiles(-1.0, 2.0, 40), Quantiles(-2.0, 4.0, 40), CURVE)
CALIBRATION = Calibration(Quantiles(-2.0, 1.0, 20), Quantiles(-1.0, 0.5, 40), SHARES)


def fold(
    kl: float, accuracy: float = 0.8, agreement: float = 0.9, *, tokens: int = 100, answers: int = 20
) -> FoldMetrics:
    return FoldMetrics(kl, accuracy, agreement, tokens, answers)


def target(kl: float, held_out: float, *, accuracy: float = 0.8) -> CrossValidation:
    """Every fold says the same."""
    return CrossValidation(kl, (fold(held_out, accuracy),) * FOLDS, (fold(0.0, 1.0),) * FOLDS)


def of_folds(kl: float, folds: Sequence[FoldMetrics]) -> CrossValidation:
    """Beside a dense model that is always right."""
    return CrossValidation(kl, tuple(folds), tuple(x._replace(kl=0.0, accuracy=1.0) for x in folds))


def test_the_gap_is_of_folds_that_had_no_part_in_the_choice() -> None:
    point = UnseenPoint.of(target(0.1, 0.2))
    assert point.gap == pytest.approx(math.log(2.0), rel=1e-4)
    assert point.deviation == LEAST_DEVIATION  # the folds agree
    assert point.accuracy == pytest.approx(0.8)
    assert point.accuracy_deviation == pytest.approx(NO_SPREAD)
    assert point.expected().accuracy_interval[0] < 0.8 < point.expected().accuracy_interval[1]
    assert point.dense_accuracy == 1.0


def test_folds_count_by_their_tokens_and_answers() -> None:
    folds = [fold(0.1, 0.9, 0.9, tokens=300, answers=10), fold(0.5, 0.5, 0.5, tokens=100, answers=30)]
    point = UnseenPoint.of(of_folds(0.2, folds))
    assert point.gap == pytest.approx(0.0, abs=1e-6)  # (300 x .1 + 100 x .5) / 400 = .2
    assert point.accuracy == pytest.approx(0.6)
    assert point.agreement == pytest.approx(0.8)


def test_the_deviation_is_that_of_a_mean_of_folds_and_of_another_such_mean() -> None:
    rng = np.random.default_rng(0)
    squares, means = [], []
    for _ in range(400):
        kl = rng.gamma(4.0, 0.05, FOLDS)
        point = UnseenPoint.of(of_folds(float(kl.mean()), [fold(float(x)) for x in kl]))
        squares.append((point.deviation * kl.mean()) ** 2)
        means.append(kl.mean())
    assert np.sqrt(np.mean(squares)) == pytest.approx(math.sqrt(2.0) * np.std(means), rel=0.1)


def test_exact_match_varies_less_beside_the_dense_models() -> None:
    """Folds that are hard for the dense model are hard for what is cut from it: the drop is what is promised."""
    accuracy = [0.5, 0.9, 0.6, 0.8, 0.7, 0.75, 0.55, 0.85]
    folds = tuple(fold(0.2, a) for a in accuracy)
    beside = CrossValidation(0.1, folds, tuple(fold(0.0, a + 0.1) for a in accuracy))
    assert UnseenPoint.of(beside).accuracy_deviation == pytest.approx(NO_SPREAD)
    assert UnseenPoint.of(of_folds(0.1, folds)).accuracy_deviation > 0.05


def test_gaps_are_local_in_log_kl() -> None:
    unseen = Unseen.of([target(0.001, 0.003), target(1.0, 1.1)])
    assert unseen is not None
    assert unseen.gap(log_kl(0.001))[0] == pytest.approx(math.log(3.0), rel=0.01)
    assert unseen.gap(log_kl(1.0))[0] == pytest.approx(math.log(1.1), rel=0.01)
    assert unseen.gap(math.log(1e-9))[0] == pytest.approx(math.log(3.0), rel=0.01)  # far from any: the nearest
    assert math.log(1.1) < unseen.gap(log_kl(0.03))[0] < math.log(3.0)
    assert Unseen.of([]) is None


def test_a_document_is_read_back() -> None:
    unseen = Unseen.of([target(0.1, 0.2), target(0.5, 0.6)])
    assert unseen is not None
    assert Unseen.from_dict(json.loads(json.dumps(unseen.to_dict()))) == unseen


@pytest.mark.parametrize("points", [[], [{"log_kl": 1.0}], None])
def test_a_damaged_document_is_refused(points: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Unseen.from_dict({"points": points})
    unseen = Unseen.of([target(0.1, 0.2)])
    assert unseen is not None
    damaged = unseen.to_dict()
    damaged["points"][0]["gap"] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        Unseen.from_dict(damaged)


def test_expectations_are_shifted_by_the_gap_and_wider_by_its_error() -> None:
    unseen = Unseen.of([target(0.1, 0.2)])
    assert unseen is not None
    judged = Judged(log_kl(0.1), 0.05, chosen=True)
    before, inside = expected_kl(CALIBRATION, judged, None)
    after, outside = expected_kl(CALIBRATION, judged, unseen)
    assert before == pytest.approx(0.1, rel=1e-3)
    assert after == pytest.approx(0.2, rel=1e-3)
    assert outside[1] / outside[0] > inside[1] / inside[0]
    assert outside[0] < after < outside[1]


def test_a_share_follows_the_curve_with_what_cross_validation_saw_off_it() -> None:
    at = float(CURVE(np.array([log_kl(0.2)]))[0])
    unseen = Unseen.of([target(0.1, 0.2, accuracy=at - 0.07)])
    assert unseen is not None
    share, interval = expected_share("accuracy", SHARES, Judged(log_kl(0.1), 0.05, chosen=True), unseen)
    assert share is not None
    assert interval is not None
    assert share == pytest.approx(at - 0.07, abs=1e-3)
    assert interval[0] < share < interval[1]


@pytest.mark.parametrize("num_configurations", [1, 40])
def test_nine_in_ten_unseen_sets_are_within_the_interval_however_many_were_chosen_from(num_configurations: int) -> None:
    """Losses of conversations with a heavy tail; the least of 40 means is chosen, which is too good to be true."""
    rng = np.random.default_rng(num_configurations)
    inside, ratios = [], []
    for _ in range(300):
        losses = heavy_losses(rng, num_configurations, 128)
        chosen = int(losses.mean(axis=1).argmin())
        scored: dict[Choice, Metrics] = {}
        for index, row in enumerate(losses):
            folds = tuple(fold(float(part.mean())) for part in np.split(row, FOLDS))
            scored[(index,)] = Metrics(float(row.mean()), 1.0, 0.8, 128, 128, 0.9, folds)
        expected = UnseenPoint.of(of_folds(float(losses[chosen].mean()), judged_without_each(scored))).expected()
        unseen = float(heavy_losses(rng, 1, 128).mean())
        inside.append(expected.interval[0] <= unseen <= expected.interval[1])
        ratios.append(unseen / expected.kl)
    assert 0.85 <= np.mean(inside) <= 0.97
    assert 0.93 <= np.exp(np.mean(np.log(ratios))) <= 1.07


def heavy_losses(rng: np.random.Generator, configurations: int, conversations: int) -> FloatArray:
    """[n, conversations] of equal mean: hard conversations are hard for all, and the rest is luck alone."""
    losses: FloatArray = rng.gamma(0.3, 0.6, conversations) + rng.gamma(0.3, 0.4, (configurations, conversations))
    return losses
