"""Swap moves, listed in full."""

import itertools

from mcts.moves import swap_moves
from tests.mcts.landscapes import limits_of, make_limits


def test_moves_of_equal_layers() -> None:
    moves = swap_moves(make_limits(3, 4, budget=5), (1, 1, 0))
    # Up by one or two, another layer pays as much; nobody can pay two from option 1, and layer 3 cannot pay at all.
    assert sorted(map(tuple, moves.tolist())) == [(0, 1, 1), (0, 2, 0), (1, 0, 1), (2, 0, 0)]


def test_moves_of_unequal_layers_use_the_limit_up_and_are_one_swap_away() -> None:
    limits, start = limits_of(((2, 5, 9), (1, 3, 4), (3, 6, 12)), budget=15), (1, 1, 1)
    found = set(map(tuple, swap_moves(limits, start).tolist()))
    expected = set()
    for other in itertools.product(range(3), repeat=3):
        ups = sum(b > a for a, b in zip(start, other, strict=True))
        downs = sum(b < a for a, b in zip(start, other, strict=True))
        left = int(limits.slack(other)[0])
        if ups == 1 and downs <= 1 and 0 <= left < 6:  # the largest step is 6
            expected.add(other)
    assert found == expected
    assert found


def test_a_step_that_fits_is_a_move() -> None:
    assert swap_moves(limits_of(((1, 2), (1, 6)), budget=3), (0, 0)).tolist() == [[1, 0]]


def test_no_moves() -> None:
    assert swap_moves(make_limits(2, 3, budget=6), (2, 2)).shape == (0, 2)
    assert swap_moves(make_limits(1, 3, budget=2), (1,)).shape == (0, 1)
