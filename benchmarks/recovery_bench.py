"""Trainings of the recovery benchmark: each is `lop recover` in a process of its own, and a step that is kept.

As many run at once as there are cores, on one thread each: a small model gains little from a second thread, and what a
training ends with does not depend on how many cores there are.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.recovery_figures import BEST, LOSSES
from benchmarks.recovery_models import (
    CALIBRATION,
    DATABASE,
    MODEL,
    NUM_TRAINING,
    PARADIGMS,
    VALIDATION,
    first_of,
    ratio_models,
    training_data,
)
from benchmarks.recovery_step_seconds import seconds_of_steps
from benchmarks.steps import Steps
from pruning.planning.plan import PruningPlan
from pruning.planning.scope import Scope

Row = dict[str, Any]

STEPS = 180
"""Of the optimiser, in every training whose length is not a question of its own. Not minutes: how many steps fit into
those depends on what else the machine does. So many see all conversations once, and those of 5% twenty times."""

MOST_TIMES = 4.0
"""As many steps, at most, as a training takes whose steps are the dearest."""
FULL, PROJECTOR = "full", "projector"

_TRIAL_CONVERSATIONS = 16
_MADE_AGAIN = ("add-*", "search*", "apply-*", "cut-*", "random-*", "recover-again-*")
"""Steps whose outputs are databases or checkpoints that later steps read."""


@dataclass(frozen=True)
class Training:
    """One `lop recover`.

    Attributes:
        pruned: the checkpoint that it begins with.
        options: words of the command.
        data: None: all that there is to train on.
        facts: for its row.
        keep: whether the recovered checkpoint is used afterwards.
    """

    name: str
    pruned: Path
    options: Sequence[str]
    data: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False


class Bench:
    """Runs trainings and keeps their rows."""

    def __init__(self, work: Path, lock: int, num_steps: int) -> None:
        self.work, self.lock, self.num_steps = work, lock, num_steps
        forget_what_was_not_carried(work)
        self.steps = Steps(work / "steps", lock=lock, renew=True)
        self.rows: list[Row] = []
        self._data: Path | None = None
        self._models: dict[tuple[str, float], Path] = {}

    @property
    def share(self) -> float:
        """Of the minutes of a run that counts: less in a trial."""
        return self.num_steps / STEPS

    @property
    def data(self) -> Path:
        """All that there is to train on."""
        self._data = self._data or training_data(self.work / "data", round(NUM_TRAINING * self.share))
        return self._data

    @property
    def selection(self) -> Path:
        """The conversations that decide."""
        return self._judged_on(CALIBRATION)

    @property
    def validation(self) -> Path:
        """Those that only report."""
        return self._judged_on(VALIDATION)

    @property
    def models(self) -> dict[tuple[str, float], Path]:
        """The pruned checkpoints by paradigm and ratio."""
        self._models = self._models or ratio_models(self.work, self.steps, self.selection, self.share)
        return self._models

    def steps_of(self, paradigm: str, ratio: float, mode: str, loss: str) -> int:
        """As many as take the time of all steps of `ours` at that ratio, in `full` by the best recipe: equal minutes.

        At most `MOST_TIMES` as many, however cheap they are.
        """
        kinds = [(FULL, name) for name in (BEST, *LOSSES)] + [(PROJECTOR, BEST)]
        pruned = {p: self.models[p, ratio] for p in PARADIGMS}
        seconds: dict[str, dict[str, float]] = self.steps.call(
            f"seconds of steps {ratio}",
            [str(ratio)],
            lambda: seconds_of_steps(pruned, kinds, self.selection),
            modules=("benchmarks.recovery_step_seconds",),
        ).document["seconds"]
        times = seconds["ours"][f"{FULL} {BEST}"] / seconds[paradigm][f"{mode} {loss}"]
        return max(1, round(self.num_steps * min(times, MOST_TIMES)))

    def train(self, trainings: Sequence[Training]) -> list[Row]:
        """Their rows, in order, which are kept, each once."""
        with _one_thread_each(), ThreadPoolExecutor(_num_cores()) as pool:
            # Commands first: what they name is made, if need be, by one thread.
            futures = [pool.submit(self._row, *pair) for pair in [(x, self.command(x)) for x in trainings]]
            try:
                rows = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        known = {row["name"] for row in self.rows}
        self.rows += [row for row in rows if row["name"] not in known]
        return rows

    def command(self, training: Training) -> list[str]:
        """The words of `lop recover`."""
        out = self._out(training)
        words = ["recover", str(training.pruned), "--teacher", str(MODEL), "--data", str(training.data or self.data)]
        words += ["--selection", str(self.selection), "--validation", str(self.validation), "--out", str(out)]
        return [*words, *training.options]

    def _out(self, training: Training) -> Path:
        return self.work / f"recovered-{training.name}"

    def _row(self, training: Training, command: Sequence[str]) -> Row:
        out = self._out(training)
        document = self.steps.lop(f"recover {training.name}", *command, makes=out).document
        if not training.keep and out.exists():
            shutil.rmtree(out)
        return {"name": training.name, **training.facts, **_short(document)}

    def _judged_on(self, source: Path) -> Path:
        return source if self.share == 1 else first_of(source, _TRIAL_CONVERSATIONS, self.work / source.name)


def forget_what_was_not_carried(work: Path) -> None:
    """Forget the steps that made databases and checkpoints, where another machine did them (`benchmarks.carried`).

    Neither is carried; trainings' reports and plans are. So checkpoints are cut again, by the same plans.
    """
    if (work / DATABASE).exists():
        return
    for made in _MADE_AGAIN:
        for step in (work / "steps").glob(f"{made}.json"):
            step.unlink()


def removed(pruned: Path) -> float:
    """The share of the decoder that a checkpoint has lost."""
    return PruningPlan.load(pruned / "lop_plan.json").achieved.removed[Scope.DECODER]


def _short(report: Row) -> Row:
    """Of a report what the result keeps."""
    kept = ("written", "best_step", "steps", "of_steps", "stopped", "training_seconds", "trained_tokens")
    parts = {part: report[part] for part in ("selection", "validation")}
    recipe = {name: report["recipe"][name] for name in ("mode", "losses", "learning_rate", "fraction")}
    return {**{name: report[name] for name in (*kept, "peak_memory_bytes")}, **recipe, **parts}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started in the block compute with one thread; this one is as it was."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
