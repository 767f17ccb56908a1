"""Scoring in this process."""

from collections.abc import Callable, Iterator, Sequence

from pruning.measuring.metrics import Evaluate, Metrics, Widths


class LocalEngine:
    """Evaluates in this process, one configuration at a time.

    Loads the model when the first one has to be measured: a search that only replays needs none.
    """

    def __init__(self, build: Callable[[], Evaluate]) -> None:
        self._build = build
        self._evaluator: Evaluate | None = None

    def __call__(self, widths: Sequence[Widths], /) -> Iterator[Metrics]:
        if self._evaluator is None:
            self._evaluator = self._build()
        for configuration in widths:
            yield from self._evaluator([configuration])
