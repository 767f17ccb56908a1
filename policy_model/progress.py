"""What a training tells whoever waits for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class TrainingProgress:
    """`step` of `num_steps` is done; `loss` is of its batch, `error` the last one on held-out data."""

    phase: str
    step: int
    num_steps: int
    loss: float
    error: float


ProgressCallback = Callable[[TrainingProgress], None]


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[ProgressCallback]:
    """A Rich progress bar as a callback for `train_predictor`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("held-out {task.fields[error]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        # Nothing is shown before there is something to tell: a training that is refused leaves no bar behind.
        task = bar.add_task("training", total=None, error=float("nan"), visible=False)

        def show(progress: TrainingProgress) -> None:
            bar.update(
                task,
                description=f"training the {progress.phase}",
                completed=progress.step,
                total=progress.num_steps,
                error=progress.error,
                visible=True,
            )

        yield show
