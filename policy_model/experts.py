"""Expert iteration: good configurations for budgets nobody searched, found on the values, for the policy to imitate.

As in expert iteration (Anthony et al., arXiv 1705.08439), a slow expert (descent over exchanges of levels on the
values) improves what the fast apprentice (the policy) proposes, and the apprentice imitates the result. Budgets are
parameters half of the time, and else some other cost of the kind that latency is: flat below a width, in stairs, dearer
in some layers.
Letters: R budgets, L decoder layers, K levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy_model.costs import LevelCosts
from policy_model.local_search import Descent, LevelValues, improve
from pruning.allocators.additive_dp import CostToGo, cost_to_go, fill_up
from pruning.arrays import FloatArray, IntArray
from pruning.planning.levels import LevelGrid
from values.dataset import TrainingData
from values.encoding import Encoding

NUM_OTHER_COSTS = 6
"""Costs that are not parameters, made up for a training."""

PARAMETER_SHARE = 0.5
"""Of the experts: those for budgets of parameters."""

MAX_ROUNDS = 24
MAX_STATES = 1024
BEYOND = 0.1
"""Retention below the lowest searched one for which experts are made too."""

COST_UNITS = 1_000_000
"""Of an average layer's dense excess in made-up costs."""


def made_up_costs(encoding: Encoding, rng: np.random.Generator) -> LevelCosts:
    """What latency may look like: flat below some width, then in proportion or in stairs, layers of unequal price."""
    L, K = encoding.grid.num_layers, encoding.grid.num_levels
    widths = np.array(encoding.grid.widths) / encoding.dense_widths[:, None]
    flat_below = rng.uniform(0.0, 0.5)
    stairs = rng.choice([0, 2, 3, 4])
    curve = np.maximum(widths - flat_below, 0.0)
    if stairs:
        curve = np.ceil(curve / curve[:, -1:] * stairs - 1e-9) / stairs
    prices = encoding.parameter_shares * L * np.exp(rng.normal(0.0, rng.choice([0.0, 0.3]), size=L))
    costs = (COST_UNITS * prices[:, None] * curve / curve[:, -1:]).astype(np.int64)
    return LevelCosts((costs - costs[:, :1]).reshape(1, L, K))


@dataclass(frozen=True, eq=False)
class Pricing:
    """One kind of cost, and what the additive program makes of it."""

    costs: LevelCosts
    grid: LevelGrid
    solution: CostToGo

    @classmethod
    def of(cls, encoding: Encoding, costs: LevelCosts) -> "Pricing":
        own = np.exp(encoding.log_sensitivity)
        table = np.concatenate([own, np.zeros((len(own), 1))], axis=1)
        rows = tuple(tuple(int(c) for c in row) for row in costs.excess[0])
        grid = LevelGrid(encoding.grid.widths, rows, encoding.grid.round_to)
        return cls(costs, grid, cost_to_go(grid, table, grid.max_cost_from[0], max_states=MAX_STATES))

    def additive_optimum(self, slack: int) -> list[int]:
        """0-based levels [L]."""
        best = fill_up(self.grid, self.solution.best_configuration(slack), slack, self.solution.table)
        return [k - 1 for k in best]

    def fit(self, levels: Sequence[int], slack: int) -> list[int]:
        """0-based `levels` [L] lowered where sensitivity rises least for the cost until they fit, then filled up."""
        table: FloatArray = self.solution.table
        current = list(levels)
        excess = sum(row[k] for row, k in zip(self.grid.costs, current, strict=True)) - slack
        while excess > 0:
            saved = [self.grid.costs[i][k] - self.grid.costs[i][k - 1] if k > 0 else 0 for i, k in enumerate(current)]
            loss = [
                (table[i, k - 1] - table[i, k]) / max(saved[i], 1e-9) if k > 0 else np.inf
                for i, k in enumerate(current)
            ]
            layer = int(np.argmin(loss))
            excess -= saved[layer]
            current[layer] -= 1
        return [k - 1 for k in fill_up(self.grid, tuple(k + 1 for k in current), slack, table)]


def pricings(encoding: Encoding, seed: int) -> list[Pricing]:
    """FFN parameters first, then `NUM_OTHER_COSTS` others."""
    rng = np.random.default_rng([seed, 1])
    others = [made_up_costs(encoding, rng) for _ in range(NUM_OTHER_COSTS)]
    return [Pricing.of(encoding, costs) for costs in (LevelCosts.of_grid(encoding.grid), *others)]


def random_slacks(
    encoding: Encoding, data: TrainingData, pricing: Pricing, count: int, seed: Sequence[int]
) -> IntArray:
    """[R] ascending, uniform from a little below the searched retentions up to nearly dense."""
    rng = np.random.default_rng(seed)
    total, lowest = encoding.grid.max_cost_from[0], encoding.grid.min_cost_from[0]
    low = max((float(data.retention[data.searched].min()) - BEYOND) * total - lowest, 0.0) / (total - lowest)
    # Stratified: one budget per equal slice, so that no range is left out by chance.
    slices = (np.arange(count) + rng.random(count)) / count
    slacks: IntArray = ((low + (0.995 - low) * slices) * int(pricing.costs.most_from[0, 0])).astype(np.int64)
    return slacks


def starting_points(data: TrainingData, pricing: Pricing, slack: int) -> list[list[int]]:
    """0-based levels: two best samples near `slack`, fitted to it, and the additive optimum."""
    levels = np.maximum(data.levels, 0)
    distance = (pricing.costs.spent(levels)[:, 0] - slack) / max(int(pricing.costs.most_from[0, 0]), 1) / 0.05
    score = distance**2 + data.gap + 1e6 * ~data.on_grid
    near = np.argsort(score, kind="stable")[:2]
    return [*(pricing.fit(levels[n].tolist(), slack) for n in near), pricing.additive_optimum(slack)]


def find_expert(table: LevelValues, pricing: Pricing, starts: Sequence[Sequence[int]], slack: int) -> IntArray:
    """The best levels [L] that descent reaches from `starts`."""
    levels = np.unique(np.array(starts, dtype=np.int64), axis=0)
    scores = table.pessimistic(levels)
    room = np.array([slack], dtype=np.int64)
    ends = [
        improve(table, pricing.costs, [Descent(start, float(score))], room, MAX_ROUNDS)
        for start, score in zip(levels, scores, strict=True)
    ]
    return min(ends, key=lambda end: end.score).levels
