"""Swap moves, listed in full."""

import itertools

from mcts.moves import swap_moves
from pruning.planning.limits import LimitKind, Limits
from tests.mcts.landscapes import limits_of, make_limits
from tests.pruning.made_up_limits import cost_of, every_choice, ladders, limit


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


def test_moves_under_several_limits_and_of_ragged_decisions() -> None:
    memory = limit(LimitKind.MEMORY_BYTES, 16, 1, (2, 5, 9), (1, 3), (3, 6, 12, 14))
    latency = limit(LimitKind.LATENCY_MS, 9, 0, (1, 1, 2), (2, 5), (1, 2, 3, 6))
    limits = Limits(ladders((1, 2, 3), (1, 2), (1, 2, 3, 4)), (memory, latency))
    for start in ((1, 0, 1), (0, 1, 1), (2, 0, 0)):
        expected = set()
        for other in every_choice(limits):
            changes = [b - a for a, b in zip(start, other, strict=True)]
            ups, downs = [x for x in changes if x > 0], [x for x in changes if x < 0]
            left = 16 - cost_of(memory, other), 9 - cost_of(latency, other)
            # The largest steps are 6 and 3: less than one of them is left over.
            used_up = min(left) >= 0 and (left[0] < 6 or left[1] < 3)
            if len(ups) == 1 and ups[0] <= 2 and len(downs) <= 1 and used_up:
                expected.add(other)
        found = [tuple(move) for move in swap_moves(limits, start).tolist()]
        assert len(found) == len(expected) > 0
        assert set(found) == expected


def test_a_step_that_fits_is_a_move() -> None:
    assert swap_moves(limits_of(((1, 2), (1, 6)), budget=3), (0, 0)).tolist() == [[1, 0]]


def test_no_moves() -> None:
    assert swap_moves(make_limits(2, 3, budget=6), (2, 2)).shape == (0, 2)
    assert swap_moves(make_limits(1, 3, budget=2), (1,)).shape == (0, 1)
