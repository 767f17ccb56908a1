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
        limits: over a space of ladders: a decision's next option keeps more.
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
        parent = min([parent, *offspring], key=lambda choice: scored[choice].kl)
    return scored


def mutate(limits: Limits, parent: Choice, rng: np.random.Generator) -> Choice:
    """`parent` [N] after min(a, b) level switches; each keeps the limits and uses them up as far as options allow."""
    child = parent
    for _ in range(min(rng.integers(1, MAX_SWITCHES + 1), rng.integers(1, MAX_SWITCHES + 1))):
        child = _switch(limits, child, rng)
    return child


def _switch(limits: Limits, choice: Choice, rng: np.random.Generator) -> Choice:
    """One random decision an option up, then random ones down until it fits, then up again what still fits."""
    excess, counts = limits.table.excess, limits.space.counts
    switched, slack = list(choice), limits.slack(choice)

    def go(n: int, step: int) -> None:
        nonlocal slack
        slack = slack + excess[:, n, switched[n]] - excess[:, n, switched[n] + step]
        switched[n] += step

    growable = [n for n, k in enumerate(choice) if k + 1 < counts[n]]
    if not growable:
        return choice
    up = int(rng.choice(growable))
    go(up, 1)
    while (slack < 0).any():
        shrinkable = [n for n, k in enumerate(switched) if k > 0 and n != up]
        if not shrinkable:
            return choice
        go(int(rng.choice(shrinkable)), -1)
    while fitting := [
        n
        for n, k in enumerate(switched)
        if k + 1 < counts[n] and (excess[:, n, k + 1] - excess[:, n, k] <= slack).all()
    ]:
        go(int(rng.choice(fitting)), 1)
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
