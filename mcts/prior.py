"""Where a search expects good options: priors over the next decision, given the ones before it.

The surrogate's prior is the default. A guide (a trained predictor) can be handed to the search: its prior is mixed in.
"""

from typing import Protocol

import numpy as np

from pruning.allocators.additive_dp import cost_to_go
from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.cost_table import CostTable
from pruning.planning.space import Choice


class Guide(Protocol):
    """What an earlier round learnt, to search by: the trained predictor is one.

    Must be a function of its weights and its arguments alone, or the search cannot be resumed.
    """

    def prior(self, prefix: Choice, slack: int, /) -> FloatArray:
        """Weights [K], not negative, of the next decision's options after `prefix` [n], if the decisions from there on
        may cost `slack` parameters above their cheapest options.

        They need not sum to 1, and may be positive on options that do not fit.
        """

    def propose(self, spare: int) -> Choice:
        """The choice [N] that it would answer with if all decisions may cost `spare` parameters above their
        cheapest options."""


class TablePrior:
    """Softmax of an additive table's cost-to-go: exp(-least log KL that can still be added / temperature).

    Args:
        table: what options cost, under one limit.
        loss: [N, K] what each option adds to log KL.
        spare: what all decisions may cost above their cheapest options.
        temperature: nats per decision.
    """

    def __init__(self, table: CostTable, loss: FloatArray, spare: int, *, temperature: float) -> None:
        self._cost_to_go = cost_to_go(table, loss, spare)
        self._temperature = temperature

    def __call__(self, prefix: Choice, slack: int, /) -> FloatArray:
        """Weights [K] of the next decision's options, as `Guide.prior`."""
        values = self._cost_to_go.action_values(len(prefix), slack)
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
