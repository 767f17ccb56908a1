"""The best of many random choices: what every search has to beat."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pruning.allocators.evolution import Score
from pruning.arrays import FloatArray, IntArray
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


MOST_COUNTED = 100_000
"""Decisions with something left over, all of them different: a second or two."""


class _TooManyError(Exception):
    """There is no end of counting."""


class ChoiceSampler:
    """Draws uniformly from all choices that `Limits.feasible` leads to: they meet the limits and use one of them up but
    for a step.

    Exact: choices are counted by a dynamic program over what is left, then each option is drawn in proportion to the
    number of ways to go on from it. Where bits may change, and under most latencies, sums of costs hardly ever
    coincide, and there would be no end of counting: where there is more than `MOST_COUNTED` to count, every feasible
    option is as likely.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._counts = limits.space.is_of_units
        self._forget()

    def draw(self, rng: np.random.Generator) -> Choice:
        """One choice [N]."""
        if self._counts:
            try:
                self._step(0, self._limits.spare)  # which counts all that there is, before anything is drawn
            except _TooManyError:
                self._counts = False
                self._forget()
        choice: list[int] = []
        slack = self._limits.spare
        for n in range(self._limits.space.num_decisions):
            step = self._step(n, slack)
            index = int(rng.choice(len(step.options), p=step.shares))
            choice.append(step.options[index])
            slack = step.left[index]
        return tuple(choice)

    def _forget(self) -> None:
        self._steps: list[dict[bytes, _Step]] = [{} for _ in self._limits.space.decisions]
        self._num_steps = 0

    def _step(self, n: int, slack: IntArray) -> "_Step":
        """What there is to draw for decision `n`, when decisions `n`.. may spend `slack` [J]."""
        known, key = self._steps[n], slack.tobytes()
        if key not in known:
            options = np.flatnonzero(self._limits.feasible(n, slack))
            left = slack - self._limits.table.columns[n][options]
            last = n + 1 == self._limits.space.num_decisions
            counts = self._counts and not last
            ways = np.array([self._step(n + 1, row).ways if counts else 1.0 for row in left])
            total = sum(ways.tolist())
            known[key] = _Step(options.tolist(), left, ways / ways.sum(), total)
            self._num_steps += 1
            if self._counts and self._num_steps > MOST_COUNTED:
                raise _TooManyError
        return known[key]


@dataclass(frozen=True, slots=True)
class _Step:
    """The feasible options of a decision, what each leaves over [A, J], and its share of the `ways` to go on: choices
    of this decision and those after it. A float, since there are many."""

    options: list[int]
    left: IntArray
    shares: FloatArray
    ways: float
