"""A recovery as it goes, on stderr: what is prepared, then steps, loss, tokens a second, the last score, time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lop.console.console import stderr, warn

if TYPE_CHECKING:
    from recovery.recover import Ears, Stage
    from recovery.scores import AnswerScores
    from recovery.training import Watcher


@contextmanager
def recovery_progress() -> "Iterator[Ears]":
    """Bars where stderr is a terminal; notes anywhere."""
    from recovery.recover import Ears

    console = stderr()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Ears(_stages_in(progress), _watcher_in(progress), warn)


@contextmanager
def silent(number: int) -> "Iterator[Ears]":
    """Of a process that is not the main one: nothing but what it alone has to note."""
    from recovery.recover import Ears

    yield Ears(on_note=lambda text: warn(f"process {number}: {text}"))


def _stages_in(progress: Progress) -> "Stage":
    def stage(label: str) -> Any:
        task = progress.add_task(label, total=None, visible=False, detail="")
        return lambda done, total: progress.update(task, completed=done, total=total, visible=True)

    return stage


def _watcher_in(progress: Progress) -> "Watcher":
    from recovery.training import Watcher

    task = progress.add_task("training", total=None, visible=False, start=False, detail="")
    score = ""

    def on_step(done: int, total: int, loss: float, speed: float) -> None:
        if not progress.tasks[task].started:
            progress.start_task(task)
        shown = f"loss {loss:.3g}, {speed:,.0f} tokens/s{score}"
        progress.update(task, completed=done, total=total, detail=shown, visible=True)

    def on_scores(_step: int, scores: "AnswerScores", is_best: bool) -> None:
        nonlocal score
        best = ", the best so far" if is_best else ""
        score = f", KL {scores.mean_kl:.3g}, exact {scores.accuracy:.1%}{best}"

    return Watcher(on_step, on_scores)
