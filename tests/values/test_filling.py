"""What was not measured of a scan: exact where it was, and near where decisions are of one shape."""

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


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_a_shape_that_all_share_is_learnt_from_few(exponent: float) -> None:
    space = ffn_space([LADDER] * 32 + [LADDER[1:]] * 32)
    truth = of_one_shape(space, np.exp(np.random.default_rng(0).normal(0.0, 0.5, 64)), exponent)

    def kl(widths: tuple[int, ...]) -> float:
        changed = [n for n, (w, most) in enumerate(zip(widths, space.dense_units, strict=True)) if w != most]
        return (
            0.0 if not changed else float(truth[changed[0], space.units[changed[0]].tolist().index(widths[changed[0]])])
        )

    done: list[int] = []
    table = scan_sensitivity(space, scoring(space, evaluate_by(kl)), done.append, most=MAX_SCAN_EVALUATIONS)
    assert done[-1] == MAX_SCAN_EVALUATIONS < len(scan_choices(space))
    below = truth > 0
    error = np.log(table[below] / truth[below])
    assert float(np.sqrt(np.mean(error**2))) < 0.1


def test_a_decision_that_was_not_measured_is_as_its_neighbours() -> None:
    space = ffn_space([[0, 1]] * 3)
    measured = np.array([[1.0, 0.0], [np.nan, 0.0], [4.0, 0.0]])
    assert filled_table(space, measured)[1].tolist() == pytest.approx([2.0, 0.0])
