"""Masks against `LevelGrid.feasible_levels`, features by hand, and several limits at once."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_model.costs import LevelCosts, num_step_features
from pruning.planning.levels import LevelGrid
from pruning.planning.limits import Limit, LimitKind, Limits, WidthSteps, parameter_limits
from tests.values.landscape import anatomy_of

ANATOMY = anatomy_of([30, 30, 60])
GRID = LevelGrid.build(ANATOMY, num_levels=3, round_to=10)
"""12 parameters a channel: excess 120 and 240 in the first two layers, 240 and 480 in the third."""


def slack_of(*values: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([list(values)], dtype=np.int64)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.data())
def test_mask_is_that_of_the_grid(data: st.DataObject) -> None:
    """Along any feasible walk, for layers of different width and price."""
    layers = data.draw(st.lists(st.tuples(st.sampled_from([32, 48, 96]), st.integers(1, 9)), min_size=1, max_size=5))
    anatomy = anatomy_of([w for w, _ in layers], [c for _, c in layers])
    grid = LevelGrid.build(anatomy, num_levels=4, round_to=8)
    costs = LevelCosts.of_grid(grid)
    remaining = data.draw(st.integers(grid.min_cost_from[0], grid.max_cost_from[0] + 50))
    for layer in range(grid.num_layers):
        expected = grid.feasible_levels(layer, remaining)
        slack = slack_of(remaining - grid.min_cost_from[layer])
        mask = costs.feasible(layer, slack)[0]
        assert [k + 1 for k in range(4) if mask[k]] == expected
        level = data.draw(st.sampled_from(expected)) - 1
        remaining -= grid.costs[layer][level]
        assert costs.after(layer, slack, np.array([level]))[0, 0] == remaining - grid.min_cost_from[layer + 1]
    assert remaining >= 0


def test_step_features_by_hand() -> None:
    costs = LevelCosts.of_grid(GRID)
    asked = costs.asked_features(slack_of(480))
    assert asked.tolist() == [[[0.5, math.log(0.5)]]]  # of 240 + 240 + 480
    features = costs.step_features(1, slack_of(360), asked)
    assert features.shape == (1, num_step_features(3))
    # Left of all, of layers 1 and 2, this layer's excess over what is left, its share times 3, its levels.
    np.testing.assert_allclose(features[0], [0.5, math.log(0.5), 360 / 960, 0.5, 240 / 360, 0.75, 0.5, 1.0])


def test_features_speak_of_the_tightest_limit() -> None:
    excess = np.stack([LevelCosts.of_grid(GRID).excess[0], 10 * LevelCosts.of_grid(GRID).excess[0]])
    both = LevelCosts(excess)
    slack = slack_of(480, 2400)  # half of the first, a quarter of the second
    features = both.step_features(0, slack, both.asked_features(slack))
    assert features[0, 0] == 0.25
    alone = LevelCosts(excess[1:])
    quarter = slack_of(2400)
    np.testing.assert_array_equal(features, alone.step_features(0, quarter, alone.asked_features(quarter)))


def test_a_limit_that_is_a_multiple_of_another_looks_the_same() -> None:
    """Bytes, operations and parameters are one question to the policy."""
    small, large = LevelCosts.of_grid(GRID), LevelCosts(7 * LevelCosts.of_grid(GRID).excess)
    levels = np.array([[0, 1, 2]])
    features, masks = small.trajectory(levels, slack_of(600))
    same_features, same_masks = large.trajectory(levels, slack_of(4200))
    np.testing.assert_allclose(features, same_features)
    assert np.array_equal(masks, same_masks)


def test_every_limit_is_kept_along_a_trajectory() -> None:
    first = LevelCosts.of_grid(GRID).excess[0]
    second = np.array([[0, 0, 500], [0, 10, 20], [0, 400, 500]])
    costs = LevelCosts(np.stack([first, second]))
    rng = np.random.default_rng(0)
    for _ in range(50):
        slack = slack_of(int(rng.integers(0, 961)), int(rng.integers(0, 1021)))
        start, levels = slack, []
        for layer in range(3):
            mask = costs.feasible(layer, slack)[0]
            levels.append(int(rng.choice(np.flatnonzero(mask))))
            slack = costs.after(layer, slack, np.array(levels[-1:]))
        assert (slack >= 0).all()
        assert (start - costs.spent(np.array([levels])) == slack).all()


def test_levels_are_brought_down_to_allowed_widths() -> None:
    limits = parameter_limits(ANATOMY, WidthSteps.build(ANATOMY, round_to=8), 1000)
    costs, widths, slack = LevelCosts.of_limits(GRID, limits)
    assert widths.tolist() == [[8, 16, 30], [8, 16, 30], [16, 40, 60]]
    assert costs.excess[0, 2].tolist() == [0, 24 * 12, 44 * 12]
    assert slack.tolist() == [1000 - 32 * 12]


@pytest.mark.parametrize("most", [100, 383])
def test_what_is_below_the_lowest_level_has_negative_slack(most: int) -> None:
    steps = WidthSteps.build(ANATOMY, round_to=2)
    limits = Limits(steps, (Limit(LimitKind.FLOPS, most, 0, tuple(12 * row for row in steps.widths)),))
    assert (LevelCosts.of_limits(GRID, limits)[2] < 0).all()
