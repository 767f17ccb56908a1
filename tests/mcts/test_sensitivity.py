"""The one-decision scan."""

import numpy as np
import pytest

from mcts.sensitivity import scan_choices, scan_sensitivity
from pruning.errors import InputError
from pruning.planning.ffn_spaces import ffn_levels, ffn_space
from tests.mcts.landscapes import Landscape, evaluate_by, make_anatomy, make_space, scoring
from values.surrogate import check_evenly_spaced


def test_scan_choices() -> None:
    assert scan_choices(make_space(2, 3)) == [(2, 2), (0, 2), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize("widths", [[[1, 2, 3], [4], [1, 5]], [[2, 4], [1, 2, 3]], [[10, 20, 30], [20, 25, 30]]])
def test_options_that_are_not_evenly_spaced_are_refused_before_anything_is_scored(widths: list[list[int]]) -> None:
    space, landscape = ffn_space(widths), Landscape([row[-1] for row in widths], seed=0)
    with pytest.raises(InputError, match="evenly spaced"):
        scan_sensitivity(space, scoring(space, landscape))
    assert not landscape.calls


@pytest.mark.parametrize(
    ("width", "num_levels", "round_to"), [(64, 8, 8), (100, 2, 80), (100, 2, 99), (129, 3, 50), (1000, 8, 100)]
)
def test_widths_that_were_rounded_count_as_evenly_spaced(width: int, num_levels: int, round_to: int) -> None:
    check_evenly_spaced(ffn_levels(make_anatomy([width]), num_levels=num_levels, round_to=round_to))


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
