"""What commands print: results to stdout (tables, or JSON for scripts), everything else to stderr."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, OverflowMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


def accept_any_text() -> None:
    """From now on, what the encoding of stdout or stderr has no character for is written as an escape.

    Paths and names may hold anything, file names even what no encoding has; a terminal or pipe may be ASCII only.
    What would go to one that is closed goes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as some service managers start processes
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 (for the process's life)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_unicode(stream: TextIO) -> bool:
    """Whether `stream` has more characters than ASCII."""
    return (getattr(stream, "encoding", None) or "").lower().startswith("utf")


def stderr() -> Console:
    """The console for progress, warnings and errors."""
    return Console(file=sys.stderr, highlight=False)


@contextmanager
def bar(label: str, *units: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr with time left, silent where that is no terminal; yields `update(done, total)`.

    `units` say how far it is; by default a count does.
    """
    console = stderr()
    counts = units or (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Like `bar`, for steps that follow one another: `stage(label)` is the `update(done, total)` of one.

    A stage is shown once it has begun.
    """
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def stage(label: str) -> Callable[[int, int], None]:
            task = progress.add_task(label, total=None, start=False, visible=False)

            def update(done: int, total: int) -> None:
                if not progress.tasks[task].started:
                    progress.start_task(task)
                progress.update(task, completed=done, total=total, visible=True)

            return update

        yield stage


def print_json(document: Any) -> None:
    """One JSON document on one line of stdout."""
    sys.stdout.write(json.dumps(document, default=str) + "\n")


def print_line(text: str) -> None:
    """A line of plain text on stdout."""
    sys.stdout.write(text + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout; numbers right-aligned by their column's first row."""
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][index], int | float)
        # Only Unicode has the character that shows where a cell was cut.
        overflow: OverflowMethod = "ellipsis" if is_unicode(sys.stdout) else "fold"
        table.add_column(column, justify="right" if numeric else "left", overflow=overflow)
    for row in rows:
        table.add_row(*(Text(f"{x:.4g}" if isinstance(x, float) else str(x)) for x in row))
    Console(file=sys.stdout, highlight=False).print(table)


def warn(message: str) -> None:
    """A warning on stderr."""
    stderr().print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """One line on stderr for a user's mistake."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
