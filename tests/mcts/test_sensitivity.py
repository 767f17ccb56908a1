"""The one-layer scan."""

import numpy as np

from mcts.sensitivity import scan_choices, scan_sensitivity
from tests.mcts.landscapes import Landscape, evaluate_by, make_space, score_by
from tests.pruning.made_up_limits import ladders


def test_scan_choices() -> None:
    assert scan_choices(make_space(2, 3)) == [(2, 2), (0, 2), (1, 2), (2, 0), (2, 1)]


def test_table_by_hand() -> None:
    done: list[int] = []
    space = make_space(2, 3)
    evaluate = evaluate_by(lambda widths: 10.0 * (3 - widths[0]) + (3 - widths[1]))
    table = scan_sensitivity(space, score_by(space, evaluate), done.append)
    assert table.tolist() == [[20.0, 10.0, 0.0], [2.0, 1.0, 0.0]]
    assert done == [5]


def test_large_scans_go_in_batches() -> None:
    landscape, space = Landscape([8] * 12, seed=0), make_space(12, 8)
    done: list[int] = []
    table = scan_sensitivity(space, score_by(space, landscape), done.append)
    assert done == [64, 85]
    assert len(set(landscape.calls)) == 85
    assert (table[:, -1] == 0.0).all()
    assert (np.diff(table, axis=1) < 0).all()


def test_options_that_a_decision_does_not_have_lose_nothing() -> None:
    space = ladders((1, 3), (1, 2, 3))
    assert scan_choices(space) == [(1, 2), (0, 2), (1, 0), (1, 1)]
    evaluate = evaluate_by(lambda widths: 10.0 * (3 - widths[0]) + (3 - widths[1]))
    assert scan_sensitivity(space, score_by(space, evaluate)).tolist() == [[20.0, 0.0, 0.0], [2.0, 1.0, 0.0]]
