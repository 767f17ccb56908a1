"""A model, its level grid and its scored samples as numbers that a network can read.

Letters: B batch, L decoder layers, K levels of the grid, F static features a layer.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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

    def feasible(self, layer: int, remaining: Tensor) -> Tensor:
        """Which levels may be chosen, bool [B, K]: `LevelGrid.feasible_levels` for a batch.

        `remaining` [B] int64 is what layers l.. may cost. At least one level is feasible in each row.
        """
        after = remaining[:, None] - self.level_costs[layer]
        fitting = after >= self.min_cost_from[layer + 1]
        fitting[:, 0] |= ~fitting.any(dim=1)
        using = fitting & (after - self.max_cost_from[layer + 1] < self.grid.largest_step)
        highest_fitting = fitting & (fitting.sum(dim=1, keepdim=True) == torch.arange(1, self.grid.num_levels + 1))
        return torch.where(using.any(dim=1, keepdim=True), using, highest_fitting)

    def budget_features(self, layer: int, remaining: Tensor, budget: Tensor) -> Tensor:
        """[B, 6] float32: asked retention, its log, and what `remaining` [B] means for layers l.. .

        `remaining` and `budget` [B] are int64 parameters. The last four: share of the dense total, share of what the
        remaining layers cost dense, the slack between their lowest (0) and dense (1) cost, this layer's dense cost as
        a share of what is left.
        """
        total = float(self.grid.max_cost_from[0])
        dense, lowest = float(self.grid.max_cost_from[layer]), float(self.grid.min_cost_from[layer])
        asked = (budget.float() / total).clamp(0.01, 1.0)
        left = remaining.float()
        own = float(self.grid.costs[layer][-1])
        return torch.stack(
            [
                asked,
                asked.log(),
                (left / total).clamp(0.0, 1.0),
                (left / dense).clamp(0.0, 2.0),
                ((left - lowest) / max(dense - lowest, 1.0)).clamp(-1.0, 2.0),
                (own / left.clamp(min=1.0)).clamp(0.0, 4.0),
            ],
            dim=-1,
        )

    def trajectory_features(self, levels: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """Budget features [B, L, 6] and feasible levels [B, L, K] along the decisions of 0-based `levels` [B, L]."""
        spent = self.costs_of_levels(levels).cumsum(dim=1)
        before = torch.cat([torch.zeros_like(budget)[:, None], spent[:, :-1]], dim=1)
        remaining = budget[:, None] - before
        layers = range(self.grid.num_layers)
        features = [self.budget_features(layer, remaining[:, layer], budget) for layer in layers]
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

    Gaps are filled along the layer first (linear in the kept fraction), then with the mean over the layers, and if
    no one-layer sample exists at all with a quadratic of the removed fraction at the samples' own scale.
    """
    points: list[dict[int, float]] = [{} for _ in grid.widths]
    for sample in samples:
        pruned = pruned_layers(grid, sample.widths)
        if len(pruned) == 1:
            points[pruned[0]][sample.widths[pruned[0]]] = log_kl(sample.metrics.kl)
    measured = [[float(w in found) for w in row[:-1]] for found, row in zip(points, grid.widths, strict=True)]
    filled = [
        [_interpolate(sorted(found.items()), w) for w in row[:-1]] if found else None
        for found, row in zip(points, grid.widths, strict=True)
    ]
    known = [row for row in filled if row is not None]
    if known:
        default = [sum(column) / len(known) for column in zip(*known, strict=True)]
        return [row if row is not None else default for row in filled], measured
    mean_log_kl = sum(log_kl(s.metrics.kl) for s in samples) / max(len(samples), 1)
    per_layer = mean_log_kl - math.log(grid.num_layers)
    curve = [[per_layer + 2.0 * math.log(1.0 - w / row[-1]) for w in row[:-1]] for row in grid.widths]
    return curve, measured


def _interpolate(points: Sequence[tuple[int, float]], width: int) -> float:
    """Piecewise linear through `points` (width, value), the end values held beyond them."""
    if width <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if width <= x1:
            return y0 + (y1 - y0) * (width - x0) / (x1 - x0)
    return points[-1][1]
