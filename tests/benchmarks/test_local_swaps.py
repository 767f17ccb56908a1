"""Local swaps: never more evaluations than given, and down the landscape."""

import itertools

import numpy as np

from benchmarks.local_swaps import MOVES_A_STEP, improve_by_swaps
from mcts.moves import swap_moves
from mcts.sensitivity import scan_sensitivity
from tests.mcts.landscapes import Landscape, make_limits, scoring


def test_steps_go_to_the_best_of_a_few_moves() -> None:
    limits = make_limits(6, 5, 15)
    score = scoring(limits.space, Landscape([5] * 6, 0))
    sensitivity = scan_sensitivity(limits.space, score)
    start = (4, 4, 1, 0, 0, 0)
    found = improve_by_swaps(limits, score, 1 + MOVES_A_STEP, sensitivity, start)
    first, *moves = found
    assert first == start
    every = [tuple(move) for move in swap_moves(limits, start).tolist()]
    additive = {move: sensitivity[np.arange(6), list(move)].sum() for move in every}
    assert [additive[move] for move in moves] == sorted(additive.values())[:MOVES_A_STEP]
    further = list(improve_by_swaps(limits, score, 2 + MOVES_A_STEP, sensitivity, start))[-1]
    best = min(found, key=lambda choice: found[choice].kl)
    assert further in {tuple(move) for move in swap_moves(limits, best).tolist()}


def test_ends_where_no_swap_is_better() -> None:
    limits = make_limits(4, 3, 8)
    landscape = Landscape([3] * 4, 1)
    score = scoring(limits.space, landscape)
    found = improve_by_swaps(limits, score, 100, scan_sensitivity(limits.space, score), (2, 2, 0, 0))
    everything = [c for c in itertools.product(range(3), repeat=4) if sum(c) + 4 == 8]
    assert set(found) <= set(everything)
    best = min(found, key=lambda choice: found[choice].kl)
    moves = [tuple(move) for move in swap_moves(limits, best).tolist()]
    assert all(found[move].kl >= found[best].kl for move in moves)
