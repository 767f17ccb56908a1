"""A model, the space that was searched and its scored samples as numbers that a network can read.

Letters: L decoder layers, N decisions, K options of the decision that has most (the others repeat their last one), F
static features of a decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray, IntArray
from pruning.measuring.statistics import ModelStatistics
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.prices import ffn_parameters, parameters
from pruning.planning.space import Space
from storage.records import Sample
from values.decisions import check_space, is_of_ffn, kind_of, padded, units_in
from values.one_decision import one_decision_curves


@dataclass(frozen=True, eq=False)
class Encoding:
    """What the predictor knows of one model before it is asked for a budget. Immutable, so threads may share it.

    Attributes:
        space: what the policy chooses from; see `check_space`.
        parameters: [N, K] parameters of each option.
        features: [N, F] static features: relative depth, share of the units and of the parameters of its kind (both
            times the number of decisions of that kind, so 1 is the average), block influence and mean channel
            importance (logarithms, standardised over the model, 0 where no statistics are known), typical log KL of
            each option below dense with all else dense (standardised over the model), and K-1 flags that say whether
            that number was measured (1) or filled in (0).
        log_sensitivity: [N, K-1] typical log KL in nats of each option below dense, with all else dense.
    """

    space: Space
    parameters: IntArray
    features: FloatArray
    log_sensitivity: FloatArray

    @cached_property
    def dense_units(self) -> IntArray:
        """[N]."""
        return np.array([row[-1] for row in self.space.units], dtype=np.int64)

    @cached_property
    def parameter_shares(self) -> FloatArray:
        """[N] part of the parameters that may go; adds up to 1."""
        shares: FloatArray = self.parameters[:, -1] / self.most_parameters
        return shares

    @cached_property
    def units(self) -> IntArray:
        """[N, K] of all options."""
        return padded(self.space.units)

    @cached_property
    def fractions(self) -> FloatArray:
        """[N, K] of the units that the options keep."""
        fractions: FloatArray = self.units / self.dense_units[:, None]
        return fractions

    @property
    def least_parameters(self) -> int:
        """What the narrowest choice keeps of the parameters that may go."""
        return int(self.parameters[:, 0].sum())

    @property
    def most_parameters(self) -> int:
        """The parameters that may go, of the dense model."""
        return int(self.parameters[:, -1].sum())

    def units_of(self, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
        """What the decisions of samples keep, [samples][N]. Raises ValueError for one that is not of the space."""
        found = [units_in(self.space, sample.architecture) for sample in samples]
        if None in found:
            raise ValueError("a sample cuts something that the space does not decide")
        return [units for units in found if units is not None]

    def kept_fractions(self, units: Sequence[Sequence[int]] | IntArray) -> FloatArray:
        """Fraction of its units that each decision keeps, [..., N] in [0, 1], from whole numbers of units [..., N]."""
        fractions: FloatArray = np.asarray(units) / self.dense_units
        return fractions

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`, bit for bit (a float64 is exact as a JSON number)."""
        return {
            "space": self.space.document(),
            "parameters": self.parameters.tolist(),
            "features": self.features.tolist(),
            "log_sensitivity": self.log_sensitivity.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Encoding":
        """Raises KeyError, TypeError or ValueError for a document of another form, InputError as `check_space`.

        Predictors of before knew a grid of widths and costs.
        """
        grid = data.get("grid")
        space = Space.from_document(data["space"]) if grid is None else ffn_space(grid["widths"])
        check_space(space)
        costs = data["parameters"] if grid is None else grid["costs"]
        parameters = np.array(costs, dtype=np.int64)
        return cls(space, parameters, np.array(data["features"]), np.array(data["log_sensitivity"]))


def encode(
    anatomy: ModelAnatomy,
    space: Space,
    samples: Sequence[Sample],
    statistics: ModelStatistics | None = None,
) -> Encoding:
    """Static features of `anatomy`, with sensitivities from those `samples` of which one decision alone is not dense.

    `statistics` of activations, if they were measured, say how much each layer changes its input and how important its
    channels are.

    Raises:
        InputError: as `check_space`, or a space of more than FFN widths was not scanned.
    """
    check_space(space)
    tables = space.tables(ffn_parameters(anatomy).of if is_of_ffn(space) else parameters(anatomy).of)
    log_sensitivity, measured = one_decision_curves(space, samples)
    kinds = [kind_of(decision) for decision in space.decisions]
    layers = np.array([decision.sites[0].layer for decision in space.decisions])
    shape = np.stack([layers / max(anatomy.num_layers - 1, 1), np.zeros(len(kinds)), np.zeros(len(kinds))], axis=1)
    dense_units, dense_parameters = np.array([row[-1] for row in space.units]), np.array([row[-1] for row in tables])
    for kind in dict.fromkeys(kinds):
        members = [n for n, other in enumerate(kinds) if other == kind]
        for column, of_kind in ((1, dense_units[members]), (2, dense_parameters[members])):
            shape[members, column] = len(members) * of_kind / of_kind.sum()
    importance = _importance(anatomy.num_layers, statistics)[layers]
    features = np.concatenate([shape, importance, _standardised(log_sensitivity), measured], axis=1)
    return Encoding(space, padded(tables), features, log_sensitivity)


def _importance(num_layers: int, statistics: ModelStatistics | None) -> FloatArray:
    """[L, 2] log block influence (ShortGPT) and log mean of FLAP's fluctuation metric, standardised; 0 if unknown."""
    if statistics is None:
        return np.zeros((num_layers, 2))
    arrays = statistics.arrays
    flap = [
        float(np.mean(arrays[f"layers.{i}.ffn_variance"] * arrays[f"layers.{i}.down_norm"] ** 2))
        for i in range(num_layers)
    ]
    columns = [np.asarray(arrays["block_influence"]), np.array(flap)]
    return np.stack([_standardised(np.log(np.maximum(column, 1e-12))) for column in columns], axis=1)


def _standardised(values: FloatArray) -> FloatArray:
    standardised: FloatArray = (values - values.mean()) / (values.std() + 1e-3)
    return standardised
