"""Priors, by hand."""

import numpy as np
import pytest

from mcts.prior import TablePrior, mix, normalise
from pruning.errors import InputError
from tests.mcts.landscapes import make_limits

TABLE = np.array([[0.5, 0.2, 0.0], [0.4, 0.3, 0.0]])


def test_softmax_of_cost_to_go() -> None:
    prior = TablePrior(make_limits(2, 3, budget=4).table, TABLE, 2, temperature=0.1)
    # (0, 2) = 0.5, (1, 1) = 0.5, (2, 0) = 0.4.
    assert prior((), 2) == pytest.approx([np.exp(-1.0), np.exp(-1.0), 1.0])
    # One left for the last layer: option 2 does not fit.
    assert prior((1,), 1) == pytest.approx([np.exp(-1.0), 1.0, 0.0])


def test_mix() -> None:
    assert mix(np.array([3.0, 1.0]), np.array([0.0, 5.0]), 0.25) == pytest.approx([0.5625, 0.4375])


def test_normalise() -> None:
    assert normalise(np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert normalise(np.zeros(4)).tolist() == [0.25] * 4
    for broken in ([-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(InputError, match="finite weights that are not negative"):
            normalise(np.array(broken))
