"""The dynamic program against brute force, and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.additive_dp import MAX_STATES, CostToGo, cost_to_go
from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.cost_table import CostTable


def table_of(*costs: tuple[int, ...]) -> CostTable:
    return CostTable.of_rows([[np.array(row, dtype=np.int64) for row in costs]])[0]


def solved(
    table: CostTable, loss: FloatArray, spare: int, *, max_states: int = MAX_STATES
) -> tuple[tuple[int, ...], CostToGo]:
    solution = cost_to_go(table, loss, spare, max_states=max_states)
    return tuple(solution.best_choice(spare).tolist()), solution


def spent(table: CostTable, choice: tuple[int, ...]) -> int:
    return int(sum(table.excess[0, n, k] for n, k in enumerate(choice)))


# Both cost 10, 20 or 30, so the cheapest choice leaves what is above 20.
TWO = table_of((10, 20, 30), (10, 20, 30))
TWO_LOSS = np.array([[5.0, 2.0, 0.0], [4.0, 3.0, 0.0]])


def test_by_hand() -> None:
    # Of 40: (0, 2) = 5, (1, 1) = 5, (2, 0) = 4.
    choice, solution = solved(TWO, TWO_LOSS, 20)
    assert choice == (2, 0)
    assert solution.unit == 10
    assert solution.values.tolist() == [[9.0, 6.0, 4.0], [4.0, 3.0, 0.0], [0.0, 0.0, 0.0]]
    assert solution.action_values(0, 20).tolist() == [5.0, 5.0, 4.0]
    assert solution.action_values(1, 10).tolist() == [4.0, 3.0, np.inf]
    assert solution.action_values(0, 0).tolist() == [9.0, np.inf, np.inf]


def test_ties_go_to_the_later_option() -> None:
    assert solved(TWO, np.zeros((2, 3)), 40)[0] == (2, 2)
    assert solved(TWO, np.zeros((2, 3)), 25)[0] == (2, 0)


def test_large_common_divisor_keeps_the_states_few() -> None:
    million = table_of(*[tuple(45_088_768 * k // 16 for k in range(1, 17))] * 32)
    loss = np.tile(np.linspace(1.0, 0.0, 16) ** 2, (32, 1))
    choice, solution = solved(million, loss, 7 * 32 * 45_088_768 // 16)
    assert solution.values.shape == (33, 7 * 32 + 1)
    assert choice == (7,) * 32


def test_more_than_everything_costs_is_everything() -> None:
    choice, solution = solved(TWO, TWO_LOSS, 10**12)
    assert choice == (2, 2)
    assert solution.values.shape == (3, 5)


def test_only_the_cheapest_choice_fits() -> None:
    assert solved(TWO, TWO_LOSS, 0)[0] == (0, 0)


def test_ragged_decisions_whose_costs_fall() -> None:
    # Option 1 of decision 0 is its floor, and decision 1 has two options.
    ragged = table_of((20, 10, 30), (10, 15))
    loss = np.array([[2.0, 9.0, 1.0], [5.0, 0.0, np.nan]])
    choice, solution = solved(ragged, loss, 15)
    assert choice == (0, 1)
    assert solved(ragged, loss, 14)[0] == (0, 0)
    assert solved(ragged, loss, 9)[0] == (1, 1)
    assert solved(ragged, loss, 25)[0] == (2, 1)
    assert solution.action_values(1, 9).tolist()[:2] == [5.0, 0.0]
    assert solution.action_values(1, 10**18)[2] == np.inf


def test_errors() -> None:
    with pytest.raises(InputError, match="2 x 3 finite numbers"):
        cost_to_go(TWO, np.array([[1.0, np.nan, 0.0], [1.0, 1.0, 0.0]]), 20)
    with pytest.raises(InputError, match="2 x 3 finite numbers"):
        cost_to_go(TWO, np.zeros((3, 2)), 20)


@st.composite
def problems(draw: st.DrawFn) -> tuple[CostTable, FloatArray, int]:
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = [tuple(draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))) for count in counts]
    shape = (len(counts), max(counts))
    losses = draw(st.lists(st.integers(-5, 20), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    table = table_of(*rows)
    loss = np.array(losses, dtype=np.float64).reshape(shape)
    return table, loss, draw(st.integers(0, int(table.most_from[0, 0]) + 10))


def objective(loss: FloatArray, choice: tuple[int, ...]) -> float:
    return float(sum(loss[n, k] for n, k in enumerate(choice)))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_equals_brute_force(problem: tuple[CostTable, FloatArray, int]) -> None:
    table, loss, spare = problem
    choice, solution = solved(table, loss, spare)
    every = itertools.product(*(range(int(row.sum())) for row in table.exists))
    least = min(objective(loss, c) for c in every if spent(table, c) <= spare)
    assert spent(table, choice) <= spare
    assert objective(loss, choice) == least
    assert solution.action_values(0, spare).min() == least


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 12))
def test_coarse_states_never_exceed_the_limit(problem: tuple[CostTable, FloatArray, int], max_states: int) -> None:
    table, loss, spare = problem
    choice, solution = solved(table, loss, spare, max_states=max_states)
    assert solution.values.shape[1] <= max_states + 1
    assert spent(table, choice) <= spare
    # What the coarse table promises is never better than what following it gives.
    assert objective(loss, choice) <= solution.values[0, -1]
