"""EvoPress: an evolution of one parent by level switches (Sieberling et al., arXiv 2410.14649, algorithm 1).

Each generation makes a few offspring of the best configuration so far. An offspring takes min(a, b) switches, a and b
uniform in {1, 2, 3}: one layer goes a level up, another pays for it by going down, so the budget stays used up. The
offspring of least KL becomes the parent if it is better. Differs from the paper in the selection: it draws 64 offspring
and thins them out on growing numbers of tokens, which at a few hundred evaluations leaves too few generations; here a
generation is small and every offspring is scored on the whole calibration set.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pruning.allocators.uniform import uniform_choice
from pruning.measuring.metrics import Metrics
from pruning.planning.limits import Limits
from pruning.planning.space import Choice

MAX_SWITCHES = 3
NUM_OFFSPRING = 8
"""Choices a generation, all different and new. Fewer are better where evaluations are only tens."""

Score = Callable[[Sequence[Choice]], Sequence[Metrics]]
"""Scores choices, all at once; metrics in the same order."""


def evolve(
    limits: Limits,
    score: Score,
    num_evaluations: int,
    rng: np.random.Generator,
    *,
    start: Choice | None = None,
    num_offspring: int = NUM_OFFSPRING,
    on_scored: Callable[[Choice, Metrics], None] | None = None,
) -> dict[Choice, Metrics]:
    """Score at most `num_evaluations` different choices within `limits`; all of them, in order.

    Args:
        limits: over any space; what a switch goes up and down by are its `steps_up` and `steps_down`.
        score: called with one generation at a time.
        start: the first parent; by default equal retention, as in the paper.
        num_offspring: choices a generation.
        on_scored: called after each evaluation.
    """
    scored: dict[Choice, Metrics] = {}

    def add(generation: list[Choice]) -> None:
        for choice, metrics in zip(generation, score(generation), strict=True):
            scored[choice] = metrics
            if on_scored is not None:
                on_scored(choice, metrics)

    parent = start or tuple(uniform_choice(limits).tolist())
    add([parent])
    while len(scored) < num_evaluations:
        offspring = _offspring(limits, parent, rng, min(num_offspring, num_evaluations - len(scored)), scored)
        if not offspring:
            break
        add(offspring)
        parent = min([parent, *offspring], key=lambda choice: scored[choice].score)
    return scored


def mutate(limits: Limits, parent: Choice, rng: np.random.Generator) -> Choice:
    """`parent` [N] after min(a, b) level switches; each keeps the limits and uses them up as far as options allow."""
    child = parent
    for _ in range(min(rng.integers(1, MAX_SWITCHES + 1), rng.integers(1, MAX_SWITCHES + 1))):
        child = _switch(limits, child, rng)
    return child


def _switch(limits: Limits, choice: Choice, rng: np.random.Generator) -> Choice:
    """One random decision a step up, then random ones down until it fits, then up again what still fits."""
    excess, ups, downs = limits.table.excess, limits.space.steps_up, limits.space.steps_down
    switched, slack = list(choice), limits.slack(choice)

    def go(n: int, options: Sequence[int]) -> None:
        nonlocal slack
        option = options[0] if len(options) == 1 else int(rng.choice(options))
        slack = slack + excess[:, n, switched[n]] - excess[:, n, option]
        switched[n] = option

    def fitting(n: int) -> list[int]:
        now = excess[:, n, switched[n]]
        return [k for k in ups[n][switched[n]] if (excess[:, n, k] - now <= slack).all()]

    growable = [n for n, k in enumerate(choice) if ups[n][k]]
    if not growable:
        return choice
    up = int(rng.choice(growable))
    go(up, ups[up][choice[up]])
    while (slack < 0).any():
        shrinkable = [n for n, k in enumerate(switched) if downs[n][k] and n != up]
        if not shrinkable:
            return choice
        down = int(rng.choice(shrinkable))
        go(down, downs[down][switched[down]])
    while found := {n: options for n in range(len(switched)) if (options := fitting(n))}:
        filled = int(rng.choice(list(found)))
        go(filled, found[filled])
    return tuple(switched)


def _offspring(
    limits: Limits, parent: Choice, rng: np.random.Generator, wanted: int, known: dict[Choice, Metrics]
) -> list[Choice]:
    """Up to `wanted` different new choices; fewer where the neighbourhood is nearly used up."""
    offspring: dict[Choice, None] = {}
    for _ in range(100 * wanted):
        child = mutate(limits, parent, rng)
        if child not in known and child != parent:
            offspring[child] = None
        if len(offspring) == wanted:
            break
    return list(offspring)
