"""The best of many random choices: what every search has to beat."""

from collections.abc import Callable

import numpy as np

from pruning.allocators.evolution import Score
from pruning.arrays import IntArray
from pruning.measuring.metrics import Metrics
from pruning.planning.limits import Limits
from pruning.planning.space import Choice

BATCH = 8
"""Choices that are scored at once."""


def search_randomly(
    limits: Limits,
    score: Score,
    num_evaluations: int,
    rng: np.random.Generator,
    *,
    on_scored: Callable[[Choice, Metrics], None] | None = None,
) -> dict[Choice, Metrics]:
    """Score `num_evaluations` different random choices within `limits`; all of them, in order.

    Stops early where so few exist that new ones are no longer met.
    """
    sampler = ChoiceSampler(limits)
    scored: dict[Choice, Metrics] = {}
    while len(scored) < num_evaluations:
        wanted = min(BATCH, num_evaluations - len(scored))
        batch: dict[Choice, None] = {}
        for _ in range(100 * wanted):
            drawn = sampler.draw(rng)
            if drawn not in scored:
                batch[drawn] = None
            if len(batch) == wanted:
                break
        if not batch:
            break
        for choice, metrics in zip(batch, score(list(batch)), strict=True):
            scored[choice] = metrics
            if on_scored is not None:
                on_scored(choice, metrics)
    return scored


class ChoiceSampler:
    """Draws uniformly from all choices that `Limits.feasible` leads to: they meet the limits and use one of them up but
    for a step.

    Exact: choices are counted by a dynamic program over what is left, then each option is drawn in proportion to the
    number of ways to go on from it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ways: list[dict[bytes, float]] = [{} for _ in limits.space.decisions]

    def draw(self, rng: np.random.Generator) -> Choice:
        """One choice [N]."""
        choice: list[int] = []
        slack = self._limits.spare
        for n in range(self._limits.space.num_decisions):
            options = np.flatnonzero(self._limits.feasible(n, slack))
            ways = np.array([self._count(n + 1, self._after(n, slack, k)) for k in options.tolist()])
            k = int(options[int(rng.choice(len(options), p=ways / ways.sum()))])
            choice.append(k)
            slack = self._after(n, slack, k)
        return tuple(choice)

    def _after(self, n: int, slack: IntArray, k: int) -> IntArray:
        left: IntArray = slack - self._limits.table.columns[n][k]
        return left

    def _count(self, n: int, slack: IntArray) -> float:
        """Choices of decisions `n`.. within `slack`; a float, since there are many."""
        if n == self._limits.space.num_decisions:
            return 1.0
        known, key = self._ways[n], slack.tobytes()
        if key not in known:
            options = np.flatnonzero(self._limits.feasible(n, slack))
            known[key] = sum(self._count(n + 1, self._after(n, slack, k)) for k in options.tolist())
        return known[key]
