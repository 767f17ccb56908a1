"""Swap moves, listed in full."""

import itertools

from mcts.moves import swap_moves
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.space import Choice
from tests.mcts.landscapes import equal_limits
from tests.pruning.made_up_limits import cost_of, every_choice, limit, limits_of


def made_up_limits(budget: int, *rows: tuple[int, ...]) -> Limits:
    return limits_of(limit(LimitKind.FFN_PARAMETERS, budget, 0, *rows))


def uses_up(limits: Limits, choice: Choice) -> bool:
    """No limit is exceeded, and less than a step of one is left."""
    left = [x.most - cost_of(x, choice) for x in limits.limits]
    steps = [max(int(b - a) for row in x.costs for a, b in itertools.pairwise(row)) for x in limits.limits]
    return min(left) >= 0 and any(a < b for a, b in zip(left, steps, strict=True))


def one_swap_away(limits: Limits, start: Choice) -> set[Choice]:
    """By the definition: one decision up by one or two options, at most one other down."""
    found = set()
    for other in every_choice(limits):
        changes = [b - a for a, b in zip(start, other, strict=True)]
        ups, downs = [x for x in changes if x > 0], [x for x in changes if x < 0]
        if len(ups) == 1 and ups[0] <= 2 and len(downs) <= 1 and uses_up(limits, other):
            found.add(other)
    return found


def test_moves_of_equal_layers() -> None:
    moves = swap_moves(equal_limits(3, 4, 5), (1, 1, 0))
    # Up by one or two, another layer pays as much; nobody can pay two from option 1, and layer 2 cannot pay at all.
    assert sorted(map(tuple, moves.tolist())) == [(0, 1, 1), (0, 2, 0), (1, 0, 1), (2, 0, 0)]


def test_moves_of_unequal_layers_use_the_limit_up_and_are_one_swap_away() -> None:
    limits = made_up_limits(15, (2, 5, 9), (1, 3, 4), (3, 6, 12))
    found = set(map(tuple, swap_moves(limits, (1, 1, 1)).tolist()))
    assert found == one_swap_away(limits, (1, 1, 1))
    assert found


def test_moves_under_several_limits_and_of_ragged_decisions() -> None:
    limits = limits_of(
        limit(LimitKind.PARAMETERS, 16, 1, (2, 5, 9), (1, 3), (3, 6, 12, 14)),
        limit(LimitKind.LATENCY_MS, 9, 0, (1, 1, 2), (2, 5), (1, 2, 3, 6)),
    )
    for start in ((1, 0, 1), (0, 1, 1), (2, 0, 0)):
        found = list(map(tuple, swap_moves(limits, start).tolist()))
        assert len(set(found)) == len(found)
        assert set(found) == one_swap_away(limits, start)
        assert found


def test_a_step_that_fits_is_a_move() -> None:
    assert swap_moves(made_up_limits(3, (1, 2), (1, 6)), (0, 0)).tolist() == [[1, 0]]


def test_no_moves() -> None:
    assert swap_moves(equal_limits(2, 3, 6), (2, 2)).shape == (0, 2)
    assert swap_moves(equal_limits(1, 3, 2), (1,)).shape == (0, 1)
