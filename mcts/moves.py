"""Moves at complete configurations: one layer goes up, another pays for it.

The level-switch mutation of EvoPress (arXiv 2410.14649, section 3.2), listed in full instead of drawn at random, so
that the search can choose among the moves by what it has learnt.
"""

import numpy as np
from numpy.typing import NDArray

from pruning.planning.levels import Configuration, LevelGrid

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
    L, K = grid.num_layers, grid.num_levels
    costs = np.asarray(grid.costs, dtype=np.int64)
    levels = np.asarray(configuration, dtype=np.int64)
    own = costs[np.arange(L), levels - 1]
    higher = levels[:, None] + np.arange(1, MAX_RISE + 1)
    rise = costs[np.arange(L)[:, None], np.minimum(higher, K) - 1] - own[:, None]
    # What is left after layer i rises by r + 1 levels and layer j goes to level k + 1: [L, MAX_RISE, L, K].
    left = (budget - own.sum() - rise)[:, :, None, None] + (own[:, None] - costs)[None, None]
    lower = np.arange(1, K + 1) < levels[:, None]
    possible = (higher <= K)[:, :, None, None] & lower[None, None] & ~np.eye(L, dtype=bool)[:, None, :, None]
    rising, by, paying, to = np.nonzero(possible & (left >= 0) & (left < grid.largest_step))
    neighbours = np.repeat(levels[None], len(rising), axis=0)
    rows = np.arange(len(rising))
    neighbours[rows, rising] += by + 1
    neighbours[rows, paying] = to + 1
    free = [
        (*configuration[:layer], int(level), *configuration[layer + 1 :])
        for layer in range(L)
        for level in higher[layer]
        if level <= K
    ]
    unpaid = [c for c in free if is_tight(grid, c, budget)]
    return np.concatenate([np.array(unpaid, dtype=np.int64).reshape(len(unpaid), L), neighbours])
