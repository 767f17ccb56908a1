"""The same retention in every layer: the baseline that every other allocation has to beat."""

import numpy as np

from pruning.arrays import IntArray
from pruning.planning.levels import Configuration, LevelGrid
from pruning.planning.limits import Limits


def uniform_widths(limits: Limits) -> list[int]:
    """FFN widths [L] of the greatest equal retention that meets `limits`; then single steps while any fits.

    Raises:
        InfeasibleBudgetError: the narrowest allowed model exceeds a limit.
    """
    limits.check()
    return limits.repair(limits.steps.of(_widest_equal(limits)))


def _widest_equal(limits: Limits) -> IntArray:
    """Indices [L] of the widths at the greatest retention that fits: the narrowest, if none does."""
    widest = np.array(limits.steps.widest, dtype=np.float64)
    rows = {row.tobytes(): row / row[-1] for row in limits.steps.widths}
    retentions = np.unique(np.concatenate(list(rows.values())))
    low, high = 0, len(retentions)
    best = np.zeros(limits.steps.num_layers, dtype=np.int64)
    while low < high:
        middle = (low + high) // 2
        # A little more than the quotient of two integers, so that it gives the first of them back.
        indices = limits.steps.at_most(widest * retentions[middle] + 1e-6)
        if (limits.slack(indices) >= 0).all():
            best, low = indices, middle + 1
        else:
            high = middle
    return best


def uniform_configuration(grid: LevelGrid, budget: int) -> Configuration:
    """The most even configuration [L] of the grid under `budget`: the narrowest layer that can still grow, grows.

    Raises:
        InfeasibleTargetError: the budget is below the lowest level in every layer.
    """
    grid.check_budget(budget)
    levels = [1] * grid.num_layers
    remaining = budget - grid.min_cost_from[0]
    while True:
        growable = [
            layer
            for layer, k in enumerate(levels)
            if k < grid.num_levels and grid.costs[layer][k] - grid.costs[layer][k - 1] <= remaining
        ]
        if not growable:
            return tuple(levels)
        layer = min(growable, key=lambda i: (grid.costs[i][levels[i] - 1] / grid.costs[i][-1], i))
        remaining -= grid.costs[layer][levels[layer]] - grid.costs[layer][levels[layer] - 1]
        levels[layer] += 1
