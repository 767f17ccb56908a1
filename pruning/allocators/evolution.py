"""EvoPress: an evolution of one parent by level switches (Sieberling et al., arXiv 2410.14649, algorithm 1).

Each generation makes a few offspring of the best configuration so far. An offspring takes min(a, b) switches, a and b
uniform in {1, 2, 3}: one layer goes a level up, another pays for it by going down, so the budget stays used up. The
offspring of least KL becomes the parent if it is better. Differs from the paper in the selection: it draws 64 offspring
and thins them out on growing numbers of tokens, which at a few hundred evaluations leaves too few generations; here a
generation is small and every offspring is scored on the whole calibration set.
"""

from collections.abc import Callable

import numpy as np

from pruning.allocators.uniform import uniform_configuration
from pruning.measuring.metrics import EvaluateWidths, Metrics
from pruning.planning.levels import Configuration, LevelGrid

MAX_SWITCHES = 3
DEFAULT_OFFSPRING = 8


def evolve(
    grid: LevelGrid,
    budget: int,
    evaluate: EvaluateWidths,
    num_evaluations: int,
    rng: np.random.Generator,
    *,
    start: Configuration | None = None,
    num_offspring: int = DEFAULT_OFFSPRING,
    on_scored: Callable[[Configuration, Metrics], None] | None = None,
) -> dict[Configuration, Metrics]:
    """Score at most `num_evaluations` different configurations under `budget` parameters; all of them, in order.

    Args:
        evaluate: scores FFN widths [n][L]; called with one generation at a time.
        start: the first parent; by default equal retention, as in the paper.
        num_offspring: configurations a generation, all different and new.
        on_scored: called after each evaluation.

    Raises InfeasibleTargetError if the budget is below the lowest level in every layer.
    """
    scored: dict[Configuration, Metrics] = {}

    def score(generation: list[Configuration]) -> None:
        measured = evaluate([tuple(grid.widths_of(c)) for c in generation])
        for configuration, metrics in zip(generation, measured, strict=True):
            scored[configuration] = metrics
            if on_scored is not None:
                on_scored(configuration, metrics)

    parent = start or uniform_configuration(grid, budget)
    score([parent])
    while len(scored) < num_evaluations:
        offspring = _offspring(grid, parent, budget, rng, min(num_offspring, num_evaluations - len(scored)), scored)
        if not offspring:
            break
        score(offspring)
        parent = min([parent, *offspring], key=lambda c: scored[c].kl)
    return scored


def mutate(grid: LevelGrid, parent: Configuration, budget: int, rng: np.random.Generator) -> Configuration:
    """`parent` [L] after min(a, b) level switches; each keeps the budget and uses it up as far as levels allow."""
    child = parent
    for _ in range(min(rng.integers(1, MAX_SWITCHES + 1), rng.integers(1, MAX_SWITCHES + 1))):
        child = _switch(grid, child, budget, rng)
    return child


def _switch(grid: LevelGrid, levels: Configuration, budget: int, rng: np.random.Generator) -> Configuration:
    """One random layer a level up, then random layers a level down until it fits, then up again what still fits."""
    switched = list(levels)
    growable = [i for i, k in enumerate(levels) if k < grid.num_levels]
    if not growable:
        return levels
    up = int(rng.choice(growable))
    switched[up] += 1
    while grid.cost(tuple(switched)) > budget:
        shrinkable = [i for i, k in enumerate(switched) if k > 1 and i != up]
        if not shrinkable:
            return levels
        switched[int(rng.choice(shrinkable))] -= 1
    while fitting := [
        i
        for i, k in enumerate(switched)
        if k < grid.num_levels and grid.costs[i][k] - grid.costs[i][k - 1] <= budget - grid.cost(tuple(switched))
    ]:
        switched[int(rng.choice(fitting))] += 1
    return tuple(switched)


def _offspring(
    grid: LevelGrid,
    parent: Configuration,
    budget: int,
    rng: np.random.Generator,
    wanted: int,
    known: dict[Configuration, Metrics],
) -> list[Configuration]:
    """Up to `wanted` different new configurations; fewer where the neighbourhood is nearly used up."""
    offspring: dict[Configuration, None] = {}
    for _ in range(100 * wanted):
        child = mutate(grid, parent, budget, rng)
        if child not in known and child != parent:
            offspring[child] = None
        if len(offspring) == wanted:
            break
    return list(offspring)
