"""A model, its level grid and its scored samples as numbers that a network can read.

Letters: B batch, L decoder layers, K levels of the grid, F static features a layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.anatomy import ModelAnatomy
from pruning.levels import LevelGrid
from storage.records import Sample

KL_FLOOR_NATS = 1e-6
"""Added before every logarithm: below it a KL in float32 is rounding noise, and the dense model's KL is 0."""

NUM_BUDGET_FEATURES = 6


@dataclass(frozen=True)
class Encoding:
    """What the predictor knows of one model before it is asked for a budget. Immutable, so threads may share it.

    Attributes:
        grid: the levels that the policy chooses from.
        features: [L, F] static features: relative depth, width share, parameter share (both times L, so 1 is the
            average layer), log KL of pruning this layer alone at levels 1..K-1 (standardised over the model), and
            K-1 flags that say whether that number was measured (1) or filled in (0).
        log_sensitivity: [L, K-1] log KL in nats of pruning one layer alone to each level below dense.
    """

    grid: LevelGrid
    features: Tensor
    log_sensitivity: Tensor

    @cached_property
    def dense_widths(self) -> Tensor:
        """[L] int64."""
        return torch.tensor([row[-1] for row in self.grid.widths])

    @cached_property
    def knots(self) -> Tensor:
        """[L, K] kept fraction of each level."""
        return torch.tensor(self.grid.widths) / self.dense_widths[:, None]

    @cached_property
    def level_costs(self) -> Tensor:
        """[L, K] int64 parameters."""
        return torch.tensor(self.grid.costs)

    @cached_property
    def min_cost_from(self) -> Tensor:
        """[L + 1] int64: the least that layers l.. cost."""
        return torch.tensor(self.grid.min_cost_from)

    @cached_property
    def max_cost_from(self) -> Tensor:
        """[L + 1] int64: what layers l.. cost when dense."""
        return torch.tensor(self.grid.max_cost_from)

    def kept_fractions(self, widths: Tensor) -> Tensor:
        """Fraction of its channels that each layer keeps, [..., L] in (0, 1], from integer widths [..., L]."""
        return widths / self.dense_widths

    def fractions_of_levels(self, levels: Tensor) -> Tensor:
        """Kept fractions [..., L] of 0-based levels [..., L]."""
        return self.knots.expand(*levels.shape, -1).gather(-1, levels[..., None]).squeeze(-1)

    def costs_of_levels(self, levels: Tensor) -> Tensor:
        """Parameters [..., L] of 0-based levels [..., L]."""
        return self.level_costs.expand(*levels.shape, -1).gather(-1, levels[..., None]).squeeze(-1)

    @cached_property
    def _level_numbers(self) -> Tensor:
        """[K] 1..K."""
        return torch.arange(1, self.grid.num_levels + 1)

    @cached_property
    def _scales(self) -> Tensor:
        """[L, 2, 3]: factors and summands that make three budget features out of what remains."""
        total = float(self.grid.max_cost_from[0])
        rows = []
        for dense, lowest in zip(self.grid.max_cost_from[:-1], self.grid.min_cost_from[:-1], strict=True):
            slack = float(dense - lowest)
            rows.append([[1.0 / total, 1.0 / dense, 1.0 / slack], [0.0, 0.0, -lowest / slack]])
        return torch.tensor(rows)

    def feasible(self, layer: int, remaining: Tensor) -> Tensor:
        """Which levels may be chosen, bool [B, K]: `LevelGrid.feasible_levels` for a batch.

        `remaining` [B] int64 is what layers l.. may cost, at least their lowest levels. Never empty in a row.
        """
        after = remaining[:, None] - self.level_costs[layer]
        fitting = after >= self.grid.min_cost_from[layer + 1]
        using = fitting & (after < self.grid.max_cost_from[layer + 1] + self.grid.largest_step)
        highest_fitting = fitting.sum(dim=1, keepdim=True) == self._level_numbers
        return torch.where(using.any(dim=1, keepdim=True), using, highest_fitting)

    def asked_features(self, budget: Tensor) -> Tensor:
        """[B, 2] float32: asked retention and its log, from `budget` [B] int64 parameters."""
        asked = (budget / self.grid.max_cost_from[0]).clamp(0.01, 1.0)
        return torch.stack([asked, asked.log()], dim=-1)

    def budget_features(self, layer: int, remaining: Tensor, asked: Tensor) -> Tensor:
        """[B, 6] float32: `asked` [B, 2] as `asked_features`, and what `remaining` [B] parameters mean for layers l.. .

        The last four: share of the dense total, share of what the remaining layers cost dense, the slack between
        their lowest (0) and dense (1) cost, this layer's dense cost as a share of what is left. None over 2.
        """
        left = remaining[:, None].float()
        factors, summands = self._scales[layer]
        own = (float(self.grid.costs[layer][-1]) / left).clamp(max=2.0)
        return torch.cat([asked, (left * factors + summands).clamp(max=2.0), own], dim=-1)

    def trajectory_features(self, levels: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """Budget features [B, L, 6] and feasible levels [B, L, K] along the decisions of 0-based `levels` [B, L]."""
        spent = self.costs_of_levels(levels).cumsum(dim=1)
        before = torch.cat([torch.zeros_like(budget)[:, None], spent[:, :-1]], dim=1)
        remaining = budget[:, None] - before
        layers = range(self.grid.num_layers)
        asked = self.asked_features(budget)
        features = [self.budget_features(layer, remaining[:, layer], asked) for layer in layers]
        masks = [self.feasible(layer, remaining[:, layer]) for layer in layers]
        return torch.stack(features, dim=1), torch.stack(masks, dim=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`, bit for bit (a float32 is exact as a JSON number)."""
        return {
            "grid": {"widths": self.grid.widths, "costs": self.grid.costs, "round_to": self.grid.round_to},
            "features": self.features.tolist(),
            "log_sensitivity": self.log_sensitivity.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Encoding":
        grid = LevelGrid(
            widths=tuple(tuple(row) for row in data["grid"]["widths"]),
            costs=tuple(tuple(row) for row in data["grid"]["costs"]),
            round_to=data["grid"]["round_to"],
        )
        return cls(grid, torch.tensor(data["features"]), torch.tensor(data["log_sensitivity"]))


def log_kl(kl_nats: float) -> float:
    """Natural logarithm of a KL, finite also for 0 and for the slightly negative values of float32 rounding."""
    return math.log(max(kl_nats, 0.0) + KL_FLOOR_NATS)


def encode(anatomy: ModelAnatomy, grid: LevelGrid, samples: Sequence[Sample]) -> Encoding:
    """Static features of `anatomy`, with one-layer sensitivities from those `samples` that prune exactly one layer."""
    L = anatomy.num_layers
    curves, measured = _sensitivity_curves(grid, samples)
    log_sensitivity = torch.tensor(curves)
    standardised = (log_sensitivity - log_sensitivity.mean()) / (log_sensitivity.std() + 1e-3)
    total_width = sum(x.ffn_width for x in anatomy.layers)
    shape = [
        [
            i / max(L - 1, 1),
            L * x.ffn_width / total_width,
            L * x.ffn_parameters / anatomy.ffn_parameters,
        ]
        for i, x in enumerate(anatomy.layers)
    ]
    features = torch.cat([torch.tensor(shape), standardised, torch.tensor(measured)], dim=1)
    return Encoding(grid=grid, features=features, log_sensitivity=log_sensitivity)


def pruned_layers(grid: LevelGrid, widths: Sequence[int]) -> list[int]:
    """Indices of the layers that `widths` [L] do not keep dense."""
    return [i for i, (w, row) in enumerate(zip(widths, grid.widths, strict=True)) if w < row[-1]]


def _sensitivity_curves(grid: LevelGrid, samples: Sequence[Sample]) -> tuple[list[list[float]], list[list[float]]]:
    """Log KL [L][K-1] of pruning one layer alone, and flags [L][K-1]: measured at exactly that level (1.0) or not.

    A level that was not measured is filled in with a model of all that were: a quadratic of the removed fraction, times
    a factor of the layer, times a factor of the level. How far the layer's measured neighbours are from that model is
    interpolated between them and held beyond them. If no one-layer sample exists at all, the quadratic has the mean
    scale of the samples.
    """
    dense = [row[-1] for row in grid.widths]
    points: list[dict[int, float]] = [{} for _ in dense]
    for sample in samples:
        pruned = pruned_layers(grid, sample.widths)
        if len(pruned) == 1:
            width = sample.widths[pruned[0]]
            points[pruned[0]][width] = log_kl(sample.metrics.kl) - _log_quadratic(width, dense[pruned[0]])
    if any(points):
        layer_factor, level_factor = _factors(grid, points)
    else:
        mean_log_kl = sum(log_kl(s.metrics.kl) for s in samples) / max(len(samples), 1)
        layer_factor, level_factor = [mean_log_kl - math.log(len(dense))] * len(dense), [0.0] * (grid.num_levels - 1)
    curves: list[list[float]] = []
    for row, found, own in zip(grid.widths, points, layer_factor, strict=True):
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
    measured = [[float(w in found) for w in row[:-1]] for found, row in zip(points, grid.widths, strict=True)]
    return curves, measured


def _log_quadratic(width: int, dense: int) -> float:
    """log((1 - width / dense)^2)."""
    return 2.0 * math.log(1.0 - width / dense)


def _factors(grid: LevelGrid, points: Sequence[dict[int, float]]) -> tuple[list[float], list[float]]:
    """Logarithms of a factor of each layer [L] and each level [K-1] that fit `points` [L] {width: log KL} best.

    Least squares over the points on the grid. Layers without a point get the mean of the others, levels without one
    are interpolated.
    """
    L, K = grid.num_layers, grid.num_levels
    entries = [
        (layer, row.index(width), value)
        for layer, (row, found) in enumerate(zip(grid.widths, points, strict=True))
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
    for row, found in zip(grid.widths, points, strict=True):
        errors = [y - float(np.interp(w, row[:-1], level_factor)) for w, y in found.items()]
        layer_factor.append(sum(errors) / len(errors) if errors else None)
    known = [f for f in layer_factor if f is not None]
    mean = sum(known) / len(known)
    return [mean if f is None else f for f in layer_factor], [float(f) for f in level_factor]
