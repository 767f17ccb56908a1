"""Where a search expects good levels: priors over the next layer's level, given the levels so far.

The surrogate's prior is the default. A guide (a trained predictor) can be handed to the search: its prior is mixed in.
"""

from typing import Protocol

import numpy as np

from pruning.allocators.additive_dp import cost_to_go
from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.levels import Configuration, LevelGrid


class Prior(Protocol):
    """Weights over the levels of the next layer.

    Called with the levels of layers 0..l - 1 and the parameters left for layers l..; returns [K] weights, not negative,
    of levels 1..K of layer l. They need not sum to 1 and may be positive on levels that do not fit: the search
    restricts them to the feasible ones. Must be a function of its arguments alone, or the search cannot be resumed.
    """

    def __call__(self, levels: Configuration, remaining: int, /) -> FloatArray: ...


class Guide(Protocol):
    """What an earlier round learnt, to search by: the trained predictor is one. A function of its weights alone."""

    def prior(self, levels: Configuration, remaining: int, /) -> FloatArray:
        """As `Prior`."""

    def propose(self, budget: int) -> Configuration:
        """The configuration [L] that it would answer `budget` FFN parameters with."""


class TablePrior:
    """Softmax of an additive table's cost-to-go: exp(-least log KL that can still be added / temperature).

    Args:
        table: [L, K] what each level of each layer adds to log KL.
        temperature: nats per decision.
    """

    def __init__(self, grid: LevelGrid, budget: int, table: FloatArray, *, temperature: float) -> None:
        self._cost_to_go = cost_to_go(grid, table, budget)
        self._temperature = temperature

    def __call__(self, levels: Configuration, remaining: int, /) -> FloatArray:
        values = self._cost_to_go.action_values(len(levels), remaining)
        weights: FloatArray = np.exp(-(values - values.min()) / self._temperature)
        return weights


def mix(weights: FloatArray, given: FloatArray, share: float) -> FloatArray:
    """(1 - share) of `weights` and `share` of `given`, both [A], each normalised first."""
    mixed: FloatArray = (1.0 - share) * normalise(weights) + share * normalise(given)
    return mixed


def normalise(weights: FloatArray) -> FloatArray:
    """Probabilities [A]; uniform if all weights are 0. Raises InputError for negative or non-finite weights."""
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError("a prior must give finite weights that are not negative", values=str(weights.tolist()))
    total = float(weights.sum())
    if total <= 0.0:
        return np.full(len(weights), 1.0 / len(weights))
    probabilities: FloatArray = weights / total
    return probabilities
