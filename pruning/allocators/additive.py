"""Widths of the least summed one-layer losses, under one limit or several."""

import numpy as np

from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.allocators.knapsack import least_within
from pruning.arrays import FloatArray
from pruning.planning.levels import LevelGrid
from pruning.planning.limits import Limits, WidthSteps


def additive_widths(grid: LevelGrid, table: FloatArray, limits: Limits) -> list[int]:
    """Allowed widths [L] that meet `limits`, of which none can grow by one more step.

    Under one limit: the optimum on the levels of `grid`, filled up. Under several: the optimum under the limit that
    takes most, repaired to all, and then the best that is found of all allowed widths, whose losses are
    `interpolated_losses`.

    Args:
        grid: the levels that were measured.
        table: [L, K] the loss of each while all other layers are dense.
        limits: no allowed width is below the layer's lowest level.

    Raises:
        InfeasibleBudgetError: the narrowest allowed model exceeds a limit.
        InputError: `table` is not [L, K] finite numbers.
    """
    limits.check()
    binding = limits.binding
    allowed = np.stack([limits.steps.at_most(list(level)) for level in zip(*grid.widths, strict=True)], axis=1)
    costs = tuple(tuple(row[of_layer].tolist()) for row, of_layer in zip(binding.costs, allowed, strict=True))
    priced = LevelGrid(grid.widths, costs, grid.round_to)
    budget = min(binding.most, binding.dense) - binding.fixed
    levels = fill_up(priced, additive_dp(priced, table, budget)[0], budget, table)
    start = grid.widths_of(levels)
    if len(limits.limits) == 1:
        # Nothing is exceeded, so channels are only added: they gain the slope of the table to the next level up.
        slopes = [
            float(row[k - 1] - row[k]) / (widths[k] - widths[k - 1]) if k < grid.num_levels else 0.0
            for k, row, widths in zip(levels, table, grid.widths, strict=True)
        ]
        return limits.repair(start, slopes)
    losses = interpolated_losses(grid, table, limits.steps)
    repaired = limits.steps.at_most(limits.repair(start, -losses))
    return limits.steps.of(least_within(limits, losses, allowed, repaired))


def interpolated_losses(grid: LevelGrid, table: FloatArray, steps: WidthSteps) -> FloatArray:
    """[L, N] the loss of every allowed width: `table` [L, K], linear between levels; 0 behind a layer's last width."""
    losses = np.zeros(steps.table.shape)
    for row, allowed, widths, measured in zip(losses, steps.widths, grid.widths, table, strict=True):
        row[: len(allowed)] = np.interp(allowed, widths, measured)
    return losses
