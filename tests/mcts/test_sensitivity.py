"""The one-decision scan."""

import numpy as np

from mcts.sensitivity import scan_choices, scan_sensitivity
from pruning.planning.ffn_spaces import ffn_space
from tests.mcts.landscapes import Landscape, evaluate_by, make_space, scoring


def test_scan_choices() -> None:
    assert scan_choices(make_space(2, 3)) == [(2, 2), (0, 2), (1, 2), (2, 0), (2, 1)]


def test_decisions_may_have_different_numbers_of_options() -> None:
    space = ffn_space([[1, 2, 3], [4], [1, 5]])
    assert scan_choices(space) == [(2, 0, 1), (0, 0, 1), (1, 0, 1), (2, 0, 0)]
    table = scan_sensitivity(space, scoring(space, evaluate_by(lambda widths: float(9 - sum(widths) + 3))))
    assert table.tolist() == [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]


def test_table_by_hand() -> None:
    done: list[int] = []
    evaluate = evaluate_by(lambda widths: 10.0 * (3 - widths[0]) + (3 - widths[1]))
    space = make_space(2, 3)
    table = scan_sensitivity(space, scoring(space, evaluate), done.append)
    assert table.tolist() == [[20.0, 10.0, 0.0], [2.0, 1.0, 0.0]]
    assert done == [5]


def test_large_scans_go_in_batches() -> None:
    landscape = Landscape([8] * 12, seed=0)
    done: list[int] = []
    space = make_space(12, 8)
    table = scan_sensitivity(space, scoring(space, landscape), done.append)
    assert done == [64, 85]
    assert len(set(landscape.calls)) == 85
    assert (table[:, -1] == 0.0).all()
    assert (np.diff(table, axis=1) < 0).all()
