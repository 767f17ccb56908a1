"""How far a search is: evaluations done, the best score, time left."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

from pruning.measuring.metrics import Metrics


class Progress(Protocol):
    """Told about every evaluation of a search.

    Called with the evaluations done and planned, what is being searched, and the metrics of the least score found for
    it (None during the sensitivity scan). May raise to stop the search; everything measured so far is stored.
    """

    def __call__(self, evaluations: int, total: int, target: str, best: Metrics | None, /) -> None: ...


def silent(evaluations: int, total: int, target: str, best: Metrics | None, /) -> None:
    """A Progress that says nothing."""


class SearchProgressBar:
    """A Progress that draws a bar on a terminal, and elsewhere prints a line every tenth of the way.

    Use as a context manager. Writes to stderr unless given a console.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(file=sys.stderr)
        self._clock = clock
        self._started = clock()
        self._tenths = 0
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("search", total=None, best=_told(None))

    def __enter__(self) -> "SearchProgressBar":
        self._started = self._clock()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, evaluations: int, total: int, target: str, best: Metrics | None, /) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, description=target, completed=evaluations, total=total, best=_told(best))
            return
        tenths = 10 * evaluations // total
        if tenths > self._tenths:
            self._tenths = tenths
            seconds = (self._clock() - self._started) * (total - evaluations) / evaluations
            line = f"{target}: {evaluations}/{total} evaluations, {_told(best)}, about {seconds:.0f} s left"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _told(best: Metrics | None) -> str:
    """The KL of the least score and, where it was measured, how often its configuration agrees with the dense model."""
    if best is None:
        return "best KL -"
    agreement = "" if best.agreement is None else f", agreement {best.agreement:.1%}"
    return f"best KL {best.kl:.5f}{agreement}"
