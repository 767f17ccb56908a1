"""The grid of widths and its feasible levels."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.levels import LevelGrid
from tests.pruning.made_up import made_up_anatomy


def test_widths_are_even_steps_up_to_dense() -> None:
    grid = LevelGrid.build(made_up_anatomy([64, 48]), num_levels=4, round_to=8)
    assert grid.widths == ((16, 32, 48, 64), (16, 24, 40, 48))
    assert grid.widths_of((1, 4)) == [16, 48]
    assert grid.configuration_of([16, 48]) == (1, 4)
    assert grid.configuration_of([17, 48]) is None
    assert grid.cost((1, 4)) == 64 * 30


def test_a_layer_too_narrow_for_the_levels_is_named() -> None:
    with pytest.raises(InputError, match="layer 1 is too narrow for 8 levels"):
        LevelGrid.build(made_up_anatomy([64, 32]), num_levels=8, round_to=8)


def test_an_impossible_budget_is_refused() -> None:
    grid = LevelGrid.build(made_up_anatomy([64, 64]), num_levels=4)
    with pytest.raises(InfeasibleTargetError):
        grid.check_budget(grid.min_cost_from[0] - 1)


@given(
    widths=st.lists(st.integers(4, 20).map(lambda n: n * 8), min_size=1, max_size=4),
    share=st.floats(0, 1.2),
    data=st.data(),
)
def test_following_feasible_levels_never_breaks_and_nearly_uses_up_the_budget(
    widths: list[int], share: float, data: st.DataObject
) -> None:
    grid = LevelGrid.build(made_up_anatomy(widths), num_levels=4, round_to=8)
    low, high = grid.min_cost_from[0], grid.max_cost_from[0]
    budget = int(low + share * (high - low))
    remaining, chosen = budget, []
    for layer in range(grid.num_layers):
        levels = grid.feasible_levels(layer, remaining)
        assert levels
        chosen.append(data.draw(st.sampled_from(levels)))
        remaining -= grid.costs[layer][chosen[-1] - 1]
    assert remaining >= 0
    assert remaining < grid.largest_step or all(k == grid.num_levels for k in chosen)


def test_feasible_levels_reach_every_tight_configuration() -> None:
    grid = LevelGrid.build(made_up_anatomy([32, 32, 32]), num_levels=4, round_to=8)
    budget = 64 * 30
    tight = {c for c in itertools.product(range(1, 5), repeat=3) if budget - grid.largest_step < grid.cost(c) <= budget}

    def walk(prefix: tuple[int, ...], remaining: int) -> set[tuple[int, ...]]:
        layer = len(prefix)
        if layer == 3:
            return {prefix}
        levels = grid.feasible_levels(layer, remaining)
        return set().union(*(walk((*prefix, k), remaining - grid.costs[layer][k - 1]) for k in levels))

    assert walk((), budget) == tight
