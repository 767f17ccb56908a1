"""Masks against their rule in plain Python, levels within limits, and several limits at once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_model.costs import DecisionCosts, ManyCosts, costs_within
from pruning.arrays import IntArray
from pruning.planning.cost_table import CostTable
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.space import Space
from pruning.planning.target import ffn_parameter_limits
from tests.values.landscape import anatomy_of

ANATOMY = anatomy_of([30, 30, 60])
LEVELS = ffn_levels(ANATOMY, num_levels=3, round_to=10)
"""12 parameters a channel: excess 120 and 240 in the first two layers, 240 and 480 in the third."""


def slack_of(*values: int) -> IntArray:
    return np.array([list(values)], dtype=np.int64)


def parameters_of(rows: list[tuple[int, int]]) -> tuple[Space, list[list[int]]]:
    """Four levels of layers of (width, parameters a channel), and their parameters [L][4]."""
    anatomy = anatomy_of([w for w, _ in rows], [c for _, c in rows])
    levels = ffn_levels(anatomy, num_levels=4, round_to=8)
    return levels, [[int(w) * price for w in row] for row, (_, price) in zip(levels.units, rows, strict=True)]


def costs_of(parameters: list[list[int]]) -> DecisionCosts:
    table = np.array(parameters, dtype=np.int64)[None]
    return DecisionCosts(table - table[:, :, :1])


COSTS = costs_of([[120, 240, 360], [120, 240, 360], [240, 480, 720]])


def feasible_options(parameters: list[list[int]], layer: int, remaining: int) -> list[int]:
    """Options that fit with the layers after them at their lowest, and that leave less than the largest step of what
    those can use up; where none does, the highest that fits."""
    low, high = (sum(row[k] for row in parameters[layer + 1 :]) for k in (0, -1))
    largest_step = max(b - a for row in parameters for a, b in itertools.pairwise(row))
    fitting = [k for k, cost in enumerate(parameters[layer]) if cost + low <= remaining]
    return [k for k in fitting if remaining - parameters[layer][k] - high < largest_step] or fitting[-1:]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.data())
def test_the_mask_leaves_what_fits_and_can_be_used_up(data: st.DataObject) -> None:
    """Along any feasible walk, for layers of different width and price; of the policy, a table and a request alike."""
    layers = data.draw(st.lists(st.tuples(st.sampled_from([32, 48, 96]), st.integers(1, 9)), min_size=1, max_size=5))
    levels, parameters = parameters_of(layers)
    costs = costs_of(parameters)
    least, most = (sum(row[k] for row in parameters) for k in (0, -1))
    remaining = data.draw(st.integers(least, most + 50))
    rows = [np.array(row, dtype=np.int64) for row in parameters]
    table, floors = CostTable.of_rows([rows])
    limits = Limits(levels, (Limit(LimitKind.FFN_PARAMETERS, remaining, 0, tuple(rows)),))
    assert floors.sum() == least
    for layer in range(len(layers)):
        expected = feasible_options(parameters, layer, remaining)
        later = sum(row[0] for row in parameters[layer + 1 :])
        slack = slack_of(remaining - parameters[layer][0] - later)
        for mask in (
            costs.feasible(layer, slack)[0],
            table.feasible(layer, slack)[0],
            limits.feasible(layer, slack[0]),
        ):
            assert np.flatnonzero(mask).tolist() == expected
        option = data.draw(st.sampled_from(expected))
        remaining -= parameters[layer][option]
        assert costs.after(layer, slack, np.array([option]))[0, 0] == remaining - later
    assert remaining >= 0


def test_every_limit_is_kept_along_a_trajectory() -> None:
    second = np.array([[0, 0, 500], [0, 10, 20], [0, 400, 500]])
    costs = DecisionCosts(np.stack([COSTS.excess[0], second]))
    rng = np.random.default_rng(0)
    for _ in range(50):
        slack = slack_of(int(rng.integers(0, 961)), int(rng.integers(0, 1021)))
        start, choice = slack, []
        for layer in range(3):
            mask = costs.feasible(layer, slack)[0]
            choice.append(int(rng.choice(np.flatnonzero(mask))))
            slack = costs.after(layer, slack, np.array(choice[-1:]))
        assert (slack >= 0).all()
        assert (start - costs.spent(np.array([choice])) == slack).all()


def test_levels_are_brought_down_to_allowed_widths() -> None:
    limits = ffn_parameter_limits(ANATOMY, ffn_widths(ANATOMY, round_to=8), 1000)
    costs, _, widths, slack = costs_within(LEVELS, limits)
    assert widths.tolist() == [[8, 16, 30], [8, 16, 30], [16, 40, 60]]
    assert costs.excess[0, 2].tolist() == [0, 24 * 12, 44 * 12]
    assert slack.tolist() == [1000 - 32 * 12]


def test_levels_that_are_brought_down_to_one_width_cost_the_same() -> None:
    """Multiples of 24 and the dense width: layers of 30 have two, for three levels."""
    limits = ffn_parameter_limits(ANATOMY, ffn_widths(ANATOMY, round_to=24), 1200)
    costs, _, widths, slack = costs_within(LEVELS, limits)
    # The narrowest allowed width is above the first level: that is brought up, and nothing below it is left.
    assert widths.tolist() == [[24, 24, 30], [24, 24, 30], [24, 24, 60]]
    assert costs.excess.tolist() == [[[0, 0, 72], [0, 0, 72], [0, 0, 432]]]
    assert slack.tolist() == [1200 - 72 * 12]
    # Of options that cost the same all may be chosen, and the last one is free.
    assert costs.feasible(0, slack[None]).tolist() == [[True, True, True]]
    assert costs.free.tolist() == [[1, 1, 2], [1, 1, 2], [1, 1, 2]]
    # As of a decision whose options all cost the same.
    flat, *_ = costs_within(LEVELS, ffn_parameter_limits(ANATOMY, ffn_widths(ANATOMY, round_to=30), 1100))
    assert flat.excess.tolist() == [[[0, 0, 0], [0, 0, 0], [0, 0, 360]]]
    assert flat.free.tolist() == [[2, 2, 2], [2, 2, 2], [1, 1, 2]]


def test_a_level_is_the_last_width_of_its_stair() -> None:
    """Latency alone, in stairs of 20 channels: the others on a stair are free."""
    fine = ffn_widths(ANATOMY, round_to=5)
    stairs = tuple(100 * -(-row // 20) for row in fine.units)
    latency = Limit(LimitKind.LATENCY_MS, 600, 0, stairs)
    costs, _, widths, slack = costs_within(LEVELS, Limits(fine, (latency,)))
    assert widths.tolist() == [[20, 20, 30], [20, 20, 30], [20, 40, 60]]
    assert costs.excess.tolist() == [[[0, 0, 100], [0, 0, 100], [0, 100, 200]]]
    assert slack.tolist() == [300]
    # A limit that everything meets is none; one that does not makes every channel cost something.
    loose, tight = (ffn_parameters(ANATOMY).limit(fine, most) for most in (1440, 1439))
    found = costs_within(LEVELS, Limits(fine, (loose, latency)))
    assert found[0].excess.tolist() == costs.excess.tolist()
    assert costs_within(LEVELS, Limits(fine, (tight, latency)))[2].tolist() == [
        [10, 20, 30],
        [10, 20, 30],
        [20, 40, 60],
    ]


def test_one_table_of_many_is_that_table() -> None:
    rng = np.random.default_rng(1)
    excess = np.sort(rng.integers(0, 90, (2, 7, 5, 4)), axis=3)
    excess -= excess[..., :1]
    many, choices = ManyCosts(excess), rng.integers(0, 4, (7, 5))
    slack = (excess[..., -1].sum(axis=2) * 0.6).astype(np.int64).T
    for row in range(7):
        one, part = DecisionCosts(excess[:, row]), many.of(np.array([row]))
        assert np.array_equal(many.most_from[:, row], one.most_from)
        assert np.array_equal(many.spent(choices)[row], one.spent(choices[row : row + 1])[0])
        assert np.array_equal(part.free[0], one.free)
        for n in range(5):
            assert np.array_equal(many.feasible(n, slack)[row], one.feasible(n, slack[row : row + 1])[0])
            assert np.array_equal(
                many.after(n, slack, choices[:, n])[row],
                one.after(n, slack[row : row + 1], choices[row : row + 1, n])[0],
            )


def test_the_slack_counts_from_the_lowest_levels_under_every_limit() -> None:
    """Latency has a fixed part and stairs of 20 channels."""
    fine = ffn_widths(ANATOMY, round_to=10)
    stairs = tuple(100 * -(-row // 20) for row in fine.units)
    limits = Limits(fine, (ffn_parameters(ANATOMY).limit(fine, 1000), Limit(LimitKind.LATENCY_MS, 900, 300, stairs)))
    costs, _, widths, slack = costs_within(LEVELS, limits)
    assert widths.tolist() == [[10, 20, 30], [10, 20, 30], [20, 40, 60]]
    assert costs.excess[0].tolist() == COSTS.excess[0].tolist()
    assert costs.excess[1].tolist() == [[0, 0, 100], [0, 0, 100], [0, 100, 200]]
    assert slack.tolist() == [1000 - 480, 900 - 300 - 300]


@pytest.mark.parametrize("most", [100, 383])
def test_what_is_below_the_lowest_level_has_negative_slack(most: int) -> None:
    fine = ffn_widths(ANATOMY, round_to=2)
    limits = Limits(fine, (Limit(LimitKind.FLOPS, most, 0, tuple(12 * row for row in fine.units)),))
    assert (costs_within(LEVELS, limits)[3] < 0).all()


def test_one_limit_that_the_lowest_levels_exceed_is_told_from_one_that_they_meet() -> None:
    fine = ffn_widths(ANATOMY, round_to=2)
    rows = tuple(12 * row for row in fine.units)
    limits = Limits(
        fine, tuple(Limit(kind, most, 0, rows) for kind, most in ((LimitKind.FLOPS, 600), (LimitKind.DISK_BYTES, 479)))
    )
    assert costs_within(LEVELS, limits)[3].tolist() == [120, -1]
