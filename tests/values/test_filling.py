"""What was not measured of a scan: exact where it was, and near it between."""

import numpy as np
import pytest

from mcts.sensitivity import MAX_SCAN_EVALUATIONS, scan_choices, scan_sensitivity
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.space import Space
from tests.mcts.landscapes import evaluate_by, scoring
from values.filling import filled_table

LADDER = [0, 8, 16, 24, 32, 40, 48, 56, 64]


def of_one_shape(space: Space, factors: np.ndarray, exponent: float) -> np.ndarray:
    """[N, K] factor times removed fraction to that power, 0 where there is no option."""
    table = np.zeros((space.num_decisions, int(space.counts.max())))
    for row, units, dense, factor in zip(table, space.units, space.dense_units, factors, strict=True):
        row[: len(units)] = factor * (1.0 - units / dense) ** exponent
    return table


def test_what_was_measured_stays() -> None:
    space = ffn_space([LADDER, LADDER[1:]])
    measured = of_one_shape(space, np.array([2.0, 3.0]), 2.0)
    assert (filled_table(space, measured) == measured).all()
    holes = measured.copy()
    holes[0, 3] = holes[1, 2] = np.nan
    filled = filled_table(space, holes)
    known = ~np.isnan(holes)
    assert (filled[known] == measured[known]).all()
    assert filled == pytest.approx(measured, rel=1e-6)  # a square is what is expected anyway


def test_between_measured_options_by_hand() -> None:
    space = ffn_space([[0, 1, 2, 3, 4]])
    # With all removed log KL is that of the square, with half of it 2 above.
    measured = np.array([[1.0, np.nan, np.exp(2.0) / 4, np.nan, 0.0]])
    filled = filled_table(space, measured)[0]
    assert filled[1] == pytest.approx(np.exp(1.0) * 9 / 16)
    assert filled[3] == pytest.approx(np.exp(2.0) / 16)  # held beyond the last


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_a_scan_in_part_is_near_the_complete_one(exponent: float) -> None:
    space = ffn_space([LADDER] * 32 + [LADDER[1:]] * 32)
    truth = of_one_shape(space, np.exp(np.random.default_rng(0).normal(0.0, 0.5, 64)), exponent)

    def kl(widths: tuple[int, ...]) -> float:
        changed = [n for n, (w, most) in enumerate(zip(widths, space.dense_units, strict=True)) if w != most]
        return sum(float(truth[n, space.units[n].tolist().index(widths[n])]) for n in changed)

    done: list[int] = []
    table = scan_sensitivity(space, scoring(space, evaluate_by(kl)), done.append, most=MAX_SCAN_EVALUATIONS)
    assert done[-1] == MAX_SCAN_EVALUATIONS < len(scan_choices(space))
    error = np.log(table[truth > 0] / truth[truth > 0])
    assert np.abs(error).max() < (0.01 if exponent == 2.0 else 1.5)
    assert np.median(np.abs(error)) < (0.01 if exponent == 2.0 else 0.1)


def test_a_decision_that_was_not_measured_is_as_its_neighbours() -> None:
    space = ffn_space([[0, 1]] * 3)
    measured = np.array([[1.0, 0.0], [np.nan, 0.0], [4.0, 0.0]])
    assert filled_table(space, measured)[1].tolist() == pytest.approx([2.0, 0.0])
    measured = np.array([[np.nan, 0.0], [3.0, 0.0], [np.nan, 0.0]])
    assert filled_table(space, measured)[:, 0].tolist() == pytest.approx([3.0, 3.0, 3.0])
