"""The one-layer scan."""

import numpy as np

from mcts.sensitivity import scan_configurations, scan_sensitivity
from tests.mcts.landscapes import Landscape, evaluate_by, make_grid


def test_scan_configurations() -> None:
    assert scan_configurations(make_grid(2, 3)) == [(3, 3), (1, 3), (2, 3), (3, 1), (3, 2)]


def test_table_by_hand() -> None:
    done: list[int] = []
    evaluate = evaluate_by(lambda widths: 10.0 * (3 - widths[0]) + (3 - widths[1]))
    table = scan_sensitivity(make_grid(2, 3), evaluate, done.append)
    assert table.tolist() == [[20.0, 10.0, 0.0], [2.0, 1.0, 0.0]]
    assert done == [5]


def test_large_scans_go_in_batches() -> None:
    landscape = Landscape([8] * 12, seed=0)
    done: list[int] = []
    table = scan_sensitivity(make_grid(12, 8), landscape, done.append)
    assert done == [64, 85]
    assert len(set(landscape.calls)) == 85
    assert (table[:, -1] == 0.0).all()
    assert (np.diff(table, axis=1) < 0).all()
