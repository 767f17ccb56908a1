"""A model, the space that was searched and its scored samples as numbers that a network can read.

Letters: L decoder layers, each with one decision, K options of each, F static features a layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.measuring.statistics import ModelStatistics
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.prices import ffn_parameters
from pruning.planning.space import Space
from storage.records import Sample
from values.typical_kl import TypicalKl


@dataclass(frozen=True, eq=False)
class Encoding:
    """What the predictor knows of one model before it is asked for a budget. Immutable, so threads may share it.

    Attributes:
        space: what the policy chooses from; see `check_space`.
        parameters: [L, K] FFN parameters of each option.
        features: [L, F] static features: relative depth, width share, parameter share (both times L, so 1 is the
            average layer), block influence and mean channel importance (logarithms, standardised over the model, 0
            where no statistics are known), typical log KL of pruning this layer alone to each option below dense
            (standardised over the model), and K-1 flags that say whether that number was measured (1) or filled in (0).
        log_sensitivity: [L, K-1] typical log KL in nats of pruning one layer alone to each option below dense.
    """

    space: Space
    parameters: IntArray
    features: FloatArray
    log_sensitivity: FloatArray

    @cached_property
    def dense_widths(self) -> IntArray:
        """[L]."""
        return np.array([row[-1] for row in self.space.units], dtype=np.int64)

    @cached_property
    def parameter_shares(self) -> FloatArray:
        """[L] part of the dense FFN parameters; adds up to 1."""
        shares: FloatArray = self.parameters[:, -1] / self.most_parameters
        return shares

    @cached_property
    def widths(self) -> IntArray:
        """[L, K] of all options."""
        return np.stack(self.space.units)

    @property
    def least_parameters(self) -> int:
        """FFN parameters of the narrowest choice."""
        return int(self.parameters[:, 0].sum())

    @property
    def most_parameters(self) -> int:
        """FFN parameters of the dense model."""
        return int(self.parameters[:, -1].sum())

    def widths_of(self, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
        """FFN widths [N][L] of samples."""
        dense = self.dense_widths.tolist()
        return [sample.architecture.units(Sublayer.FFN, dense) for sample in samples]

    def kept_fractions(self, widths: Sequence[Sequence[int]] | IntArray) -> FloatArray:
        """Fraction of its channels that each layer keeps, [..., L] in (0, 1], from integer widths [..., L]."""
        fractions: FloatArray = np.asarray(widths) / self.dense_widths
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


def check_space(space: Space) -> None:
    """What values and policy can learn: the FFN width of every layer, of as many options each, ascending to dense.

    The policy has one head for all layers, and the values know a layer by the fraction of its channels that it keeps.

    Raises:
        InputError: `space` is another one.
    """
    sites = [decision.sites for decision in space.decisions]
    of_ffn = sites == [(Site(layer, Sublayer.FFN),) for layer in range(len(sites))]
    equal = len(set(space.counts.tolist())) == 1 and space.counts[0] >= 2
    if not (of_ffn and space.of_ladders and equal and space.units_of(space.top) == tuple(space.dense_units.tolist())):
        names = [f"{site.layer}.{site.sublayer}" for of_decision in sites for site in of_decision]
        raise InputError(
            "a predictor is of a space of one FFN decision a layer, as many widths in each, ascending to the dense one",
            values=f"sites {', '.join(names)} with {', '.join(map(str, space.counts))} options",
            remedy="Search FFN widths of one number of levels",
        )


def encode(
    anatomy: ModelAnatomy,
    space: Space,
    samples: Sequence[Sample],
    statistics: ModelStatistics | None = None,
) -> Encoding:
    """Static features of `anatomy`, with one-layer sensitivities from those `samples` that prune exactly one layer.

    `statistics` of activations, if they were measured, say how much each layer changes its input and how important its
    channels are.

    Raises:
        InputError: as `check_space`.
    """
    check_space(space)
    L = anatomy.num_layers
    parameters = np.stack(space.tables(ffn_parameters(anatomy).of))
    curves, measured = _sensitivity_curves(space, samples)
    log_sensitivity = np.array(curves)
    total_width = sum(x.ffn_width for x in anatomy.layers)
    shape = [
        [
            i / max(L - 1, 1),
            L * x.ffn_width / total_width,
            L * x.ffn_parameters / anatomy.ffn_parameters,
        ]
        for i, x in enumerate(anatomy.layers)
    ]
    importance = _importance(L, statistics)
    features = np.concatenate([np.array(shape), importance, _standardised(log_sensitivity), measured], axis=1)
    return Encoding(space, parameters, features, log_sensitivity)


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


def pruned_layers(space: Space, widths: Sequence[int]) -> list[int]:
    """Indices of the layers that `widths` [L] do not keep dense."""
    return [i for i, (w, row) in enumerate(zip(widths, space.units, strict=True)) if w < row[-1]]


def _sensitivity_curves(space: Space, samples: Sequence[Sample]) -> tuple[list[list[float]], list[list[float]]]:
    """Typical log KL [L][K-1] of pruning one layer alone, and flags [L][K-1]: measured at just that level (1.0) or not.

    A level that was not measured is filled in with a model of all that were: a quadratic of the removed fraction, times
    a factor of the layer, times a factor of the level. How far the layer's measured neighbours are from that model is
    interpolated between them and held beyond them. If no one-layer sample exists at all, the quadratic has the mean
    scale of the samples.
    """
    rows = [units.tolist() for units in space.units]
    dense = [row[-1] for row in rows]
    points: list[dict[int, float]] = [{} for _ in dense]
    typical = TypicalKl.of([sample.metrics for sample in samples])
    for sample in samples:
        kept = sample.architecture.units(Sublayer.FFN, dense)
        pruned = pruned_layers(space, kept)
        if len(pruned) == 1:
            width = kept[pruned[0]]
            points[pruned[0]][width] = typical(sample.metrics) - _log_quadratic(width, dense[pruned[0]])
    if any(points):
        layer_factor, level_factor = _factors(rows, points)
    else:
        mean_log_kl = sum(typical(s.metrics) for s in samples) / max(len(samples), 1)
        layer_factor, level_factor = [mean_log_kl - math.log(len(dense))] * len(dense), [0.0] * (len(rows[0]) - 1)
    curves: list[list[float]] = []
    for row, found, own in zip(rows, points, layer_factor, strict=True):
        widths = sorted(found)
        modelled = [own + float(np.interp(w, row[:-1], level_factor)) for w in widths]
        error = [found[w] - m for w, m in zip(widths, modelled, strict=True)]
        filled = np.interp(row[:-1], widths, error) if widths else np.zeros(len(row) - 1)
        curves.append(
            [
                found.get(w, own + level + float(e)) + _log_quadratic(w, row[-1])
                for w, level, e in zip(row[:-1], level_factor, filled, strict=True)
            ]
        )
    measured = [[float(w in found) for w in row[:-1]] for found, row in zip(points, rows, strict=True)]
    return curves, measured


def _log_quadratic(width: int, dense: int) -> float:
    """log((1 - width / dense)^2)."""
    return 2.0 * math.log(1.0 - width / dense)


def _factors(rows: Sequence[list[int]], points: Sequence[dict[int, float]]) -> tuple[list[float], list[float]]:
    """Logarithms of a factor of each layer [L] and each level [K-1] that fit `points` [L] {width: log KL} best.

    Least squares over the points among the widths `rows` [L][K]. Layers without a point get the mean of the others,
    levels without one are interpolated.
    """
    L, K = len(rows), len(rows[0])
    entries = [
        (layer, row.index(width), value)
        for layer, (row, found) in enumerate(zip(rows, points, strict=True))
        for width, value in found.items()
        if width in row
    ]
    design = np.zeros((len(entries), L + K - 1))
    for n, (layer, level, _) in enumerate(entries):
        design[n, layer] = design[n, L + level] = 1.0
    factors = np.linalg.lstsq(design, np.array([value for _, _, value in entries]), rcond=None)[0]
    seen = sorted({level for _, level, _ in entries})
    level_factor = np.interp(range(K - 1), seen, factors[L:][seen]) if seen else np.zeros(K - 1)
    layer_factor: list[float | None] = []
    for row, found in zip(rows, points, strict=True):
        errors = [y - float(np.interp(w, row[:-1], level_factor)) for w, y in found.items()]
        layer_factor.append(sum(errors) / len(errors) if errors else None)
    known = [f for f in layer_factor if f is not None]
    mean = sum(known) / len(known)
    return [mean if f is None else f for f in layer_factor], [float(f) for f in level_factor]
