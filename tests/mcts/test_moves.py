"""Swap moves, listed in full."""

import itertools

from mcts.moves import is_tight, swap_moves
from pruning.planning.levels import LevelGrid
from tests.mcts.landscapes import make_grid


def test_moves_of_equal_layers() -> None:
    moves = swap_moves(make_grid(3, 4), (2, 2, 1), 5)
    # Up by one or two, another layer pays as much; nobody can pay two from level 2, and layer 3 cannot pay at all.
    assert sorted(map(tuple, moves.tolist())) == [(1, 2, 2), (1, 3, 1), (2, 1, 2), (3, 1, 1)]


def test_moves_of_unequal_layers_are_tight_and_one_swap_away() -> None:
    costs = ((2, 5, 9), (1, 3, 4), (3, 6, 12))
    grid = LevelGrid(widths=costs, costs=costs, round_to=1)
    start, budget = (2, 2, 2), 15
    found = set(map(tuple, swap_moves(grid, start, budget).tolist()))
    expected = set()
    for other in itertools.product((1, 2, 3), repeat=3):
        ups = sum(b > a for a, b in zip(start, other, strict=True))
        downs = sum(b < a for a, b in zip(start, other, strict=True))
        if ups == 1 and downs <= 1 and is_tight(grid, other, budget):
            expected.add(other)
    assert found == expected
    assert found


def test_a_step_that_fits_is_a_move() -> None:
    costs = ((1, 2), (1, 6))
    grid = LevelGrid(widths=costs, costs=costs, round_to=1)
    assert swap_moves(grid, (1, 1), 3).tolist() == [[2, 1]]


def test_no_moves() -> None:
    assert swap_moves(make_grid(2, 3), (3, 3), 6).shape == (0, 2)
    assert swap_moves(make_grid(1, 3), (2,), 2).shape == (0, 1)
