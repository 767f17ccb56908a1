"""What the policy is told, by hand: of three decisions of three options, under one limit and under two."""

import math

import numpy as np
import pytest

from policy_model.costs import DecisionCosts
from policy_model.model_features import NUM_OPTION_FEATURES, ModelFeatures
from policy_model.problem_features import MOST, ProblemFeatures, Progress
from pruning.arrays import FloatArray
from values.kl_floor import KL_FLOOR_NATS

EXCESS = np.array([[[0, 120, 240], [0, 120, 240], [0, 240, 480]]])
OWN = np.array([[0.5, 0.2, 0.0], [0.4, 0.1, 0.0], [0.9, 0.3, 0.0]])
MODEL = ModelFeatures(np.zeros((3, 4)), np.zeros((3, 3, NUM_OPTION_FEATURES)), OWN)
PROBLEM = ProblemFeatures(MODEL, DecisionCosts(EXCESS))


def started(problem: ProblemFeatures, *slack: int) -> Progress:
    return problem.start(np.array([list(slack)], dtype=np.int64))


def additive(total: list[float], lost: float = 0.0) -> FloatArray:
    """[K] log KL above that of the best option."""
    logs = np.log(np.array(total) + lost + KL_FLOOR_NATS)
    above: FloatArray = np.minimum(logs - logs.min(), MOST)
    return above


def test_what_was_asked_and_what_is_left() -> None:
    progress = started(PROBLEM, 480)  # of 960
    np.testing.assert_allclose(progress.step_features(0)[0], [0.5, math.log(0.5), 0.5, math.log(0.5), 0.5], rtol=1e-4)
    progress.take(0, np.array([0]))
    assert progress.slack.tolist() == [[480]]
    np.testing.assert_allclose(
        progress.step_features(1)[0], [0.5, math.log(0.5), 2 / 3, math.log(2 / 3), 2 / 3], rtol=1e-4
    )


def test_what_an_option_takes_and_what_the_additive_program_makes_of_it() -> None:
    progress = started(PROBLEM, 600)
    found = progress.taken_features(0)[:, 0].T
    np.testing.assert_allclose(found[:, 0], [0, 120 / 601, 240 / 601], rtol=1e-4)
    np.testing.assert_allclose(found[:, 1], [120 / 601, 120 / 601, 0], rtol=1e-4)
    np.testing.assert_allclose(found[:, 2], [600 / 720, 480 / 720, 360 / 720], rtol=1e-4)
    # The best of the other two for 600, 480 and 360: (1, 2), (0, 2) or (2, 1), and (1, 1).
    best = additive([0.5 + 0.1, 0.2 + 0.3, 0.0 + 0.4])
    np.testing.assert_allclose(found[:, 4], best, atol=1e-5)
    np.testing.assert_allclose(found[:, 5], np.minimum(10 * best, MOST), atol=1e-4)
    progress.take(0, np.array([1]))
    np.testing.assert_allclose(progress.taken_features(1)[4, 0], additive([0.4, 0.1 + 0.3, 0.3], lost=0.2), atol=1e-5)


def test_of_several_limits_the_tightest_counts() -> None:
    second = np.array([[0, 10, 100], [0, 10, 100], [0, 10, 100]])
    both = ProblemFeatures(MODEL, DecisionCosts(np.stack([EXCESS[0], second])))
    progress = started(both, 900, 60)
    tight, loose = 60 / 300, 900 / 960
    np.testing.assert_allclose(
        progress.step_features(0)[0], [tight, math.log(tight), tight, math.log(tight), loose], rtol=1e-4
    )
    found = progress.taken_features(0)[:, 0].T
    np.testing.assert_allclose(found[:2, 0], [0, 10 / 61], rtol=1e-4)
    np.testing.assert_allclose(found[:2, 2], [60 / 200, 50 / 200], rtol=1e-4)
    np.testing.assert_allclose(found[:2, 3], [1.25, 780 / 720], rtol=1e-4)
    # Under the second limit no decision may be dense.
    np.testing.assert_allclose(found[:2, 4], additive([0.5 + 0.1 + 0.3, 0.2 + 0.1 + 0.3]), atol=1e-5)


def test_what_costs_nothing_from_here_on_limits_nothing() -> None:
    flat = ProblemFeatures(MODEL, DecisionCosts(np.array([[[0, 5, 10], [0, 0, 0], [0, 0, 0]]])))
    progress = started(flat, 5)
    assert progress.step_features(0)[0, 2] == pytest.approx(0.5, rel=1e-3)
    progress.take(0, np.array([1]))
    assert progress.slack.tolist() == [[0]]
    assert progress.step_features(1)[0, 2:].tolist() == [MOST, pytest.approx(math.log(MOST)), MOST]
    assert np.isfinite(progress.taken_features(1)).all()


def test_nearly_dense_something_has_to_be_given_up() -> None:
    """However coarse the additive program counts: costs of a million units, and one too few of them."""
    rng = np.random.default_rng(0)
    excess = np.sort(rng.integers(1, 10**6, (1, 3, 3)), axis=2)
    excess[:, :, 0] = 0
    problem = ProblemFeatures(MODEL, DecisionCosts(excess))
    progress = started(problem, int(excess[:, :, -1].sum()) - 1)
    for n in (0, 1):
        progress.take(n, np.array([2]))
    # Both others are dense: what the last one loses is all there is.
    assert progress.taken_features(2)[4, 0].tolist() == pytest.approx(
        additive([0.9, 0.3, 2 * OWN[:, 0].sum() / 256]).tolist(), abs=1e-3
    )
