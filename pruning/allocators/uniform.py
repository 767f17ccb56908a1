"""The same retention in every layer: the baseline that every other allocation has to beat."""

from pruning.anatomy import ModelAnatomy
from pruning.levels import Configuration, LevelGrid
from pruning.repair import repair_widths


def uniform_widths(anatomy: ModelAnatomy, budget: int, *, round_to: int) -> list[int]:
    """FFN widths [L] of equal retention that cost at most `budget` parameters and leave less than one step over.

    Raises:
        InfeasibleTargetError: the budget is below `round_to` channels in every layer.
    """
    total = anatomy.ffn_parameters
    kept = max(0, min(budget, total))
    widths = [layer.ffn_width * kept // total for layer in anatomy.layers]
    return repair_widths(anatomy, widths, budget, round_to=round_to)


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
