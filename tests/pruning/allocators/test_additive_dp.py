"""The dynamic program against brute force, and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.additive_dp import additive_dp, cost_to_go, fill_up
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.levels import LevelGrid


def make_grid(*costs: tuple[int, ...]) -> LevelGrid:
    return LevelGrid(widths=costs, costs=costs, round_to=1)


TWO = make_grid((10, 20, 30), (10, 20, 30))
TWO_TABLE = np.array([[5.0, 2.0, 0.0], [4.0, 3.0, 0.0]])


def test_by_hand() -> None:
    # Budget 40: (1, 3) = 5, (2, 2) = 5, (3, 1) = 4.
    configuration, solution = additive_dp(TWO, TWO_TABLE, 40)
    assert configuration == (3, 1)
    assert solution.unit == 10
    assert solution.values.tolist() == [[9.0, 6.0, 4.0], [4.0, 3.0, 0.0], [0.0, 0.0, 0.0]]
    assert solution.action_values(0, 40).tolist() == [5.0, 5.0, 4.0]
    assert solution.action_values(1, 20).tolist() == [4.0, 3.0, np.inf]
    assert solution.action_values(0, 20).tolist() == [9.0, np.inf, np.inf]


def test_ties_go_to_the_wider_level() -> None:
    assert additive_dp(TWO, np.zeros((2, 3)), 60)[0] == (3, 3)
    assert additive_dp(TWO, np.zeros((2, 3)), 45)[0] == (3, 1)


def test_large_common_divisor_keeps_the_states_few() -> None:
    million = make_grid(*[tuple(45_088_768 * k // 16 for k in range(1, 17))] * 32)
    table = np.tile(np.linspace(1.0, 0.0, 16) ** 2, (32, 1))
    configuration, solution = additive_dp(million, table, million.max_cost_from[0] // 2)
    assert solution.values.shape == (33, 7 * 32 + 1)
    assert configuration == (8,) * 32


def test_budget_beyond_dense_is_dense() -> None:
    assert additive_dp(TWO, TWO_TABLE, 10**12)[0] == (3, 3)


def test_only_the_lowest_configuration_fits() -> None:
    assert additive_dp(TWO, TWO_TABLE, 20)[0] == (1, 1)


def test_errors() -> None:
    with pytest.raises(InfeasibleTargetError, match="lowest configuration costs 20"):
        cost_to_go(TWO, TWO_TABLE, 19)
    with pytest.raises(InputError, match="2 x 3 finite numbers"):
        cost_to_go(TWO, np.array([[1.0, np.nan, 0.0], [1.0, 1.0, 0.0]]), 40)
    with pytest.raises(InputError, match="2 x 3 finite numbers"):
        cost_to_go(TWO, np.zeros((3, 2)), 40)


def test_fill_up_spends_what_is_left_where_it_hurts_least() -> None:
    table = np.array([[0.0, 0.3, 0.3], [0.0, 0.1, 0.9]])  # a noisy scan: more width, more loss
    assert additive_dp(TWO, table, 40)[0] == (1, 1)
    assert fill_up(TWO, (1, 1), 40, table) == (2, 2)
    assert fill_up(TWO, (3, 3), 99, table) == (3, 3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[LevelGrid, np.ndarray, int]:
    L, K = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    rows = [tuple(itertools.accumulate(draw(st.lists(st.integers(1, 50), min_size=K, max_size=K)))) for _ in range(L)]
    table = np.array(draw(st.lists(st.integers(-5, 20), min_size=L * K, max_size=L * K)), dtype=float).reshape(L, K)
    grid = make_grid(*rows)
    return grid, table, draw(st.integers(grid.min_cost_from[0], grid.max_cost_from[0] + 10))


def objective(table: np.ndarray, configuration: tuple[int, ...]) -> float:
    return float(sum(table[layer, k - 1] for layer, k in enumerate(configuration)))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_equals_brute_force(problem: tuple[LevelGrid, np.ndarray, int]) -> None:
    grid, table, budget = problem
    configuration, solution = additive_dp(grid, table, budget)
    fitting = [
        c for c in itertools.product(range(1, grid.num_levels + 1), repeat=grid.num_layers) if grid.cost(c) <= budget
    ]
    least = min(objective(table, c) for c in fitting)
    assert grid.cost(configuration) <= budget
    assert objective(table, configuration) == least
    assert solution.action_values(0, budget).min() == least


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 12))
def test_coarse_states_never_exceed_the_budget(problem: tuple[LevelGrid, np.ndarray, int], max_states: int) -> None:
    grid, table, budget = problem
    configuration, solution = additive_dp(grid, table, budget, max_states=max_states)
    assert solution.values.shape[1] <= max_states + 1
    assert grid.cost(configuration) <= budget
    # What the coarse table promises is never better than what following it gives.
    assert objective(table, configuration) <= solution.values[0, -1]
