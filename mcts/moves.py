"""Moves at complete configurations: one layer goes up, another pays for it.

The level-switch mutation of EvoPress (arXiv 2410.14649, section 3.2), listed in full instead of drawn at random, so
that the search can choose among the moves by what it has learnt.
"""

import numpy as np
from numpy.typing import NDArray

from pruning.levels import Configuration, LevelGrid

MAX_RISE = 2
"""Levels that a single move may raise a layer by."""


def is_tight(grid: LevelGrid, configuration: Configuration, budget: int) -> bool:
    """Under `budget`, with less than one level step of it left over (or all dense)."""
    left = budget - grid.cost(configuration)
    return left >= 0 and (left < grid.largest_step or min(configuration) == grid.num_levels)


def swap_moves(grid: LevelGrid, configuration: Configuration, budget: int) -> NDArray[np.int64]:
    """All tight configurations [n, L] one move away: a layer up by 1..MAX_RISE levels, at most one other down.

    In a fixed order; empty if there are none.
    """
    costs = np.asarray(grid.costs, dtype=np.int64)
    left = budget - grid.cost(configuration)
    dense = (grid.num_levels,) * grid.num_layers
    neighbours: list[Configuration] = []
    for rising, level in enumerate(configuration):
        for higher in range(level + 1, min(level + MAX_RISE, grid.num_levels) + 1):
            price = int(costs[rising, higher - 1] - costs[rising, level - 1])
            raised = (*configuration[:rising], higher, *configuration[rising + 1 :])
            if price <= left and (left - price < grid.largest_step or raised == dense):
                neighbours.append(raised)
            for paying, own in enumerate(configuration):
                if paying == rising:
                    continue
                after = left - price + costs[paying, own - 1] - costs[paying, : own - 1]
                fitting = np.flatnonzero((after >= 0) & (after < grid.largest_step)).tolist()
                neighbours.extend((*raised[:paying], index + 1, *raised[paying + 1 :]) for index in fitting)
    return np.array(neighbours, dtype=np.int64).reshape(len(neighbours), grid.num_layers)
