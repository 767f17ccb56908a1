"""The best of many random configurations: what every search has to beat."""

from collections.abc import Callable

import numpy as np

from pruning.measuring.metrics import EvaluateWidths, Metrics
from pruning.planning.levels import Configuration, LevelGrid

BATCH = 8
"""Configurations handed to the evaluator at once."""


def search_randomly(
    grid: LevelGrid,
    budget: int,
    evaluate: EvaluateWidths,
    num_evaluations: int,
    rng: np.random.Generator,
    *,
    on_scored: Callable[[Configuration, Metrics], None] | None = None,
) -> dict[Configuration, Metrics]:
    """Score `num_evaluations` different random configurations under `budget` parameters; all of them, in order.

    Stops early where so few exist that new ones are no longer met.
    """
    sampler = ConfigurationSampler(grid, budget)
    scored: dict[Configuration, Metrics] = {}
    while len(scored) < num_evaluations:
        wanted = min(BATCH, num_evaluations - len(scored))
        batch: dict[Configuration, None] = {}
        for _ in range(100 * wanted):
            drawn = sampler.draw(rng)
            if drawn not in scored:
                batch[drawn] = None
            if len(batch) == wanted:
                break
        if not batch:
            break
        measured = evaluate([tuple(grid.widths_of(c)) for c in batch])
        for configuration, metrics in zip(batch, measured, strict=True):
            scored[configuration] = metrics
            if on_scored is not None:
                on_scored(configuration, metrics)
    return scored


class ConfigurationSampler:
    """Draws uniformly from all configurations that fit a budget and leave less than one level step of it over.

    Exact: configurations are counted by a dynamic program over what is left of the budget, then each level is drawn
    in proportion to the number of ways to go on from it.

    Raises InfeasibleTargetError if there is no such configuration.
    """

    def __init__(self, grid: LevelGrid, budget: int) -> None:
        grid.check_budget(budget)
        self._grid = grid
        self._budget = budget
        self._ways: list[dict[int, float]] = [{} for _ in range(grid.num_layers)]

    def draw(self, rng: np.random.Generator) -> Configuration:
        """One configuration [L]."""
        levels: list[int] = []
        remaining = self._budget
        for layer, costs in enumerate(self._grid.costs):
            actions = self._grid.feasible_levels(layer, remaining)
            ways = np.array([self._count(layer + 1, remaining - costs[k - 1]) for k in actions])
            level = actions[int(rng.choice(len(actions), p=ways / ways.sum()))]
            levels.append(level)
            remaining -= costs[level - 1]
        return tuple(levels)

    def _count(self, layer: int, remaining: int) -> float:
        """Configurations of layers `layer`.. under `remaining` parameters; a float, since there are many."""
        if layer == self._grid.num_layers:
            return 1.0
        known = self._ways[layer]
        if remaining not in known:
            costs = self._grid.costs[layer]
            known[remaining] = sum(
                self._count(layer + 1, remaining - costs[k - 1]) for k in self._grid.feasible_levels(layer, remaining)
            )
        return known[remaining]
