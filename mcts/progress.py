"""How far a search is: evaluations done, the best score, time left."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar


class Progress(Protocol):
    """Told about every evaluation of a search.

    Called with the evaluations done and planned, what is being searched, and the least KL found for it (None during
    the sensitivity scan). May raise to stop the search; everything measured so far is stored.
    """

    def __call__(self, evaluations: int, total: int, target: str, best_kl: float | None, /) -> None: ...


def silent(evaluations: int, total: int, target: str, best_kl: float | None, /) -> None:
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
            TextColumn("best KL {task.fields[best]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("search", total=None, best="-")

    def __enter__(self) -> "SearchProgressBar":
        self._started = self._clock()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, evaluations: int, total: int, target: str, best_kl: float | None, /) -> None:
        best = "-" if best_kl is None else f"{best_kl:.5f}"
        if self._console.is_terminal:
            self._bar.update(self._task, description=target, completed=evaluations, total=total, best=best)
            return
        tenths = 10 * evaluations // total
        if tenths > self._tenths:
            self._tenths = tenths
            seconds = (self._clock() - self._started) * (total - evaluations) / evaluations
            line = f"{target}: {evaluations}/{total} evaluations, best KL {best}, about {seconds:.0f} s left"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
