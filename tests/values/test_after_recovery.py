"""What is expected after recovery: by hand where few points decide, and on made-up points that features explain."""

import math

import numpy as np
import pytest

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from tests.mcts.landscapes import make_anatomy
from values.after_recovery import RecoveredValues, recovery_features

NO_NOISE = 10**9


def fit(before: list[float], after: dict[int, float], skipped: list[float] | None = None) -> RecoveredValues:
    """Of one target; `skipped` is the only feature."""
    features = np.array([skipped or [0.0] * len(before)]).T
    targets = np.zeros(len(before), dtype=np.int64)
    return RecoveredValues.fit(targets, np.array(before), features, after, num_answers=NO_NOISE)


def test_one_recovered_says_the_same_gain_of_all() -> None:
    found = fit([-1.0, -0.8, -0.5], {0: -2.5})
    assert found.expected == pytest.approx([-2.5, -2.3, -2.0])
    assert found.deviation == pytest.approx(0.3)
    assert (found.best(0), found.points, found.ridge) == (0, 0, None)
    assert math.isnan(found.error_of_order)
    gains = found.improvements()
    assert gains[0] == 0.0
    assert gains[1] > gains[2] > 0.0


def test_few_points_leave_the_order_as_it_was() -> None:
    found = fit([-1.0, -0.8, -0.5], {0: -2.5, 1: -2.5}, [0.0, 1.0, 2.0])
    # Gains of -1.5 and -1.7; each left out is missed by .2, the third one gets their mean.
    assert found.error_of_order == pytest.approx(0.2)
    assert found.deviation == pytest.approx(math.sqrt((2 * 0.09 + 2 * 0.04) / 4))
    assert found.expected[2] == pytest.approx(-0.5 - 1.6)
    assert found.ridge is None


def test_what_was_measured_on_few_answers_leans_on_the_others() -> None:
    found = RecoveredValues.fit(
        np.zeros(2, dtype=np.int64), np.array([-1.0, -1.0]), np.zeros((2, 1)), {0: -2.0, 1: -2.4}, num_answers=25
    )
    # Each predicts the other; a variance of 1/25 against (2 x .09 + 2 x .16) / 4 = .125.
    trust = 0.04 / (0.04 + 0.125)
    assert found.expected == pytest.approx([-2.0 - 0.4 * trust, -2.4 + 0.4 * trust])


def test_a_feature_that_explains_the_gain_is_taken_and_changes_who_is_best() -> None:
    skipped = [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    before = [-1.0, -0.98, -0.96, -0.94, -0.92, -0.90, -0.88]
    gains = [
        -1.0 - 0.5 * x + wobble for x, wobble in zip(skipped, [0.02, -0.02, 0.01, -0.01, 0.02, -0.02, 0], strict=True)
    ]
    after = {i: before[i] + gains[i] for i in range(6)}
    found = fit(before, after, skipped)
    assert found.ridge is not None
    assert found.error < 0.5 * found.error_of_order
    assert found.expected[6] < min(after.values())
    assert int(np.argmax(found.improvements())) == 6
    assert found.best(0) in (4, 5)


def test_a_feature_that_explains_nothing_is_not_taken() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        before = np.sort(rng.normal(size=8)).tolist()
        after = {i: before[i] - 1.0 + float(rng.normal(scale=0.1)) for i in range(7)}
        found = fit(before, after, rng.normal(size=8).tolist())
        assert found.ridge is None or found.error < found.error_of_order


def test_targets_have_gains_of_their_own() -> None:
    targets = np.array([0, 0, 1, 1, 2])
    before = np.array([-5.0, -4.5, -1.0, -0.9, 0.0])
    found = RecoveredValues.fit(targets, before, np.zeros((5, 1)), {0: -5.2, 2: -2.5}, num_answers=NO_NOISE)
    assert found.expected[:4] == pytest.approx([-5.2, -4.7, -2.5, -2.4])
    assert math.isnan(found.expected[4])
    assert found.best(2) is None
    assert math.isinf(found.improvements()[4])


def test_features_by_hand() -> None:
    anatomy = make_anatomy([8, 8])
    ffn, attention = Site(0, Sublayer.FFN), Site(0, Sublayer.ATTENTION)
    cut = Architecture.of({ffn: Option(0), attention: Option(1)})
    # Of four sub-layers one is skipped; the first layer loses (1 + 1/2) / 2, the second nothing.
    assert recovery_features(cut, anatomy) == pytest.approx((0.25, 0.375))
    assert recovery_features(Architecture(), anatomy) == (0.0, 0.0)
