"""The best configuration if layers did not interact: an exact dynamic program over one-layer costs.

Minimises sum_l table[l, k_l] subject to sum_l parameters[l, k_l] <= budget. The same problem is solved by dynamic
programming in SPDY (arXiv 2202.04824, section 3) and EvoPress's `dp_search` baseline (arXiv 2410.14649), and as an
integer program in Puzzle (arXiv 2411.19146).

The states of the program are the parameters left over after every remaining layer got its lowest level, counted in
units of the costs' greatest common divisor: exact. Where that makes more than `max_states` states, the unit grows and
costs are rounded up and what remains is rounded down, so the budget is never exceeded.
"""

import math
from dataclasses import dataclass

import numpy as np

from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.levels import Configuration, LevelGrid

MAX_STATES = 8192
"""Budget states per layer, at most: exact for 32 layers of 11,008 channels in multiples of 64 (at most 5,504)."""


@dataclass(frozen=True)
class CostToGo:
    """The least that layers l.. can add to the objective, for every budget left: a prior for a search.

    Attributes:
        grid: what the levels keep and cost.
        table: [L, K] objective of layer l at level k, as given.
        values: [L + 1, S + 1] least objective of layers l.. with s spare units; the last row is 0.
        unit: parameters per spare unit.
    """

    grid: LevelGrid
    table: FloatArray
    values: FloatArray
    unit: int

    def action_values(self, layer: int, remaining: int) -> FloatArray:
        """[K] least objective of layers `layer`.. for each level of `layer`; infinity where it does not fit.

        `remaining` is in parameters, for layers `layer`.. together.
        """
        values = np.full(self.grid.num_levels, np.inf)
        spare = remaining - self.grid.min_cost_from[layer + 1]
        following = self.values[layer + 1]
        for index, cost in enumerate(self.grid.costs[layer]):
            if cost <= spare:
                state = min((spare - cost) // self.unit, len(following) - 1)
                values[index] = self.table[layer, index] + following[state]
        return values

    def best_configuration(self, budget: int) -> Configuration:
        """The configuration [L] of least objective that costs at most `budget`; of equal ones, the wider."""
        levels: list[int] = []
        remaining = budget
        for layer in range(self.grid.num_layers):
            values = self.action_values(layer, remaining)
            level = self.grid.num_levels - int(np.argmin(values[::-1]))
            levels.append(level)
            remaining -= self.grid.costs[layer][level - 1]
        return tuple(levels)


def cost_to_go(grid: LevelGrid, table: FloatArray, budget: int, *, max_states: int = MAX_STATES) -> CostToGo:
    """Solve the dynamic program backwards, from the last layer to the first: O(L K S) time, O(L S) memory.

    Raises:
        InfeasibleTargetError: the budget is below the lowest level in every layer.
        InputError: `table` is not [L, K] finite numbers.
    """
    grid.check_budget(budget)
    if table.shape != (grid.num_layers, grid.num_levels) or not np.isfinite(table).all():
        raise InputError(
            f"the cost table must hold {grid.num_layers} x {grid.num_levels} finite numbers",
            values=f"shape {table.shape}, {int((~np.isfinite(table)).sum())} not finite",
            remedy="Run the sensitivity scan again",
        )
    extra = [[cost - row[0] for cost in row] for row in grid.costs]
    spare = min(budget, grid.max_cost_from[0]) - grid.min_cost_from[0]
    unit = max(math.gcd(*(cost for row in extra for cost in row)), -(-spare // max_states), 1)
    states = spare // unit
    values = np.zeros((grid.num_layers + 1, states + 1))
    for layer in reversed(range(grid.num_layers)):
        best = np.full(states + 1, np.inf)
        for index, cost in enumerate(extra[layer]):
            units = -(-cost // unit)
            if units <= states:
                candidate = table[layer, index] + values[layer + 1, : states + 1 - units]
                np.minimum(best[units:], candidate, out=best[units:])
        values[layer] = best
    return CostToGo(grid=grid, table=table, values=values, unit=unit)


def additive_dp(
    grid: LevelGrid, table: FloatArray, budget: int, *, max_states: int = MAX_STATES
) -> tuple[Configuration, CostToGo]:
    """The configuration [L] of least summed `table` [L, K] under `budget` parameters, and the table behind it.

    Raises as `cost_to_go`.
    """
    solution = cost_to_go(grid, table, budget, max_states=max_states)
    return solution.best_configuration(budget), solution


def fill_up(grid: LevelGrid, configuration: Configuration, budget: int, table: FloatArray) -> Configuration:
    """Raise levels of `configuration` [L] while any step fits, the one that adds least to `table` [L, K] first.

    A measured table is seldom monotone, so its optimum may leave budget over; a plan never gives capacity away.
    """
    levels = list(configuration)
    remaining = budget - grid.cost(configuration)
    while True:
        steps = [
            (float(table[layer, k] - table[layer, k - 1]), layer)
            for layer, k in enumerate(levels)
            if k < grid.num_levels and grid.costs[layer][k] - grid.costs[layer][k - 1] <= remaining
        ]
        if not steps:
            return tuple(levels)
        _, layer = min(steps)
        remaining -= grid.costs[layer][levels[layer]] - grid.costs[layer][levels[layer] - 1]
        levels[layer] += 1
