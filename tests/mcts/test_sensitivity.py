"""The one-decision scan."""

import numpy as np
import pytest

from mcts.sensitivity import MAX_SCAN_EVALUATIONS, scan_choices, scan_sensitivity
from pruning.planning.ffn_spaces import ffn_space
from tests.mcts.landscapes import Landscape, evaluate_by, make_space, scoring


def test_scan_choices() -> None:
    assert scan_choices(make_space(2, 3)) == [(2, 2), (0, 2), (1, 2), (2, 0), (2, 1)]


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


def test_decisions_of_other_ladders_have_nothing_where_they_have_no_option() -> None:
    space = ffn_space([[1, 2, 3], [4, 5]])
    table = scan_sensitivity(space, scoring(space, evaluate_by(lambda widths: 8.0 - sum(widths))))
    assert table.tolist() == [[2.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def measured_options(ladders: list[list[int]], most: int) -> list[list[int]]:
    """[N] the options that a scan of at most so many evaluations measures of each decision."""
    space = ffn_space(ladders)
    choices = scan_choices(space, most)
    assert choices[0] == space.top
    assert len(set(choices)) == len(choices) <= most
    found: list[list[int]] = [[] for _ in ladders]
    for choice in choices[1:]:
        ((n, k),) = [(n, k) for n, (k, last) in enumerate(zip(choice, space.top, strict=True)) if k != last]
        found[n].append(k)
    return found


def test_a_scan_in_rounds_begins_at_the_floor_and_goes_where_least_is_known() -> None:
    ladder = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert measured_options([ladder] * 4, 5) == [[0]] * 4
    assert measured_options([ladder] * 4, 9) == [[0, 4]] * 4
    assert measured_options([ladder] * 4, 11) == [[0, 4], [0, 2, 4], [0, 4], [0, 2, 4]]  # at even distances
    assert measured_options([ladder] * 8, 5) == [[], [0], [], [0], [], [0], [], [0]]


def test_a_scan_that_fits_is_complete_and_short_ladders_leave_more_to_others() -> None:
    ladders = [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 8]]
    assert measured_options(ladders, 10) == [[*range(8)], [0]]
    assert measured_options(ladders, 4) == [[0, 4], [0]]


@pytest.mark.parametrize("num_layers", [8, 16, 32, 48, 80])
def test_deep_models_take_no_more_than_allowed(num_layers: int) -> None:
    ladders = [[0, 1, 2, 4], [0, 8, 16, 24, 32, 40, 48, 56, 64]] * num_layers
    found = measured_options(ladders, MAX_SCAN_EVALUATIONS)
    full = num_layers * (3 + 8)
    assert sum(map(len, found)) == min(MAX_SCAN_EVALUATIONS - 1, full)
    if num_layers <= 48:
        assert all(options[0] == 0 for options in found)
