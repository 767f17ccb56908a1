"""Scoring in this process."""

import time
from collections.abc import Callable, Iterator, Sequence

from engines.memo import Measured
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Evaluate


class LocalEngine:
    """Evaluates in this process, one configuration at a time.

    Loads the model when the first one has to be measured: a search that only replays needs none.

    Args:
        build: makes the evaluator.
        clock: seconds, monotonic.
    """

    def __init__(self, build: Callable[[], Evaluate], *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._build = build
        self._clock = clock
        self._evaluator: Evaluate | None = None

    def __call__(self, architectures: Sequence[Architecture], /) -> Iterator[Measured]:
        if self._evaluator is None:
            self._evaluator = self._build()
        for architecture in architectures:
            yield measure(self._evaluator, architecture, self._clock)


def measure(evaluate: Evaluate, architecture: Architecture, clock: Callable[[], float] = time.perf_counter) -> Measured:
    """One architecture alone, and how long it took."""
    before = clock()
    (metrics,) = evaluate([architecture])
    return Measured(metrics, clock() - before)
