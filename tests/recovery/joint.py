"""Processes that train together on this machine, by gloo, as a launcher starts them: forked from one that has imported
everything."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lop.workflows.recovering import recover_folder, recovery_data
from recovery.processes import Processes
from recovery.recipe import Recipe
from recovery.recover import Ears
from recovery.scores import AnswerScores
from recovery.several import Several
from recovery.training import Watcher
from tests.forked import CONTEXT
from tests.recovery.conftest import Cut

SETTINGS: dict[str, Any] = {
    "losses": {"sft": 1.0, "kd-logits": 1.0, "kd-hidden": 1.0},
    "epochs": 4,
    "evaluations": 4,
    "learning_rate": 1e-3,
    "step_tokens": 16,
    "batch_tokens": 200,
}


@dataclass(frozen=True)
class Ended:
    """How a process ended: what it gave back, or else the error's type and text; its exit code."""

    made: Any
    error: tuple[str, str] | None
    code: int | None


def together(count: int, call: Callable[..., Any], *arguments: Any) -> list[Ended]:
    """`call(processes, *arguments)` in each of `count` processes; `call` must be importable."""
    return launched(count, _joined, call, *arguments)


def launched(count: int, call: Callable[..., Any], *arguments: Any) -> list[Ended]:
    """`call(*arguments)` in each of `count` processes whose environment is as launchers make it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for number in range(count):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run, args=(theirs, number, count, port, call, arguments))
        process.start()
        theirs.close()
        started.append((process, ours))
    ended = []
    for process, pipe in started:
        try:
            made, error = pipe.recv()
        except EOFError:
            made, error = None, None
        process.join()
        ended.append(Ended(made, error, process.exitcode))
        process.close()
    return ended


def _run(pipe: Any, number: int, count: int, port: int, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    where = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    try:
        made = call(*arguments)
    except Exception as error:  # noqa: BLE001 (told to the test)
        pipe.send((None, (type(error).__name__, str(error))))
        os._exit(1)  # not torch's own end, which would wait for the others
    pipe.send((made, None))


def _joined(call: Callable[..., Any], *arguments: Any) -> Any:
    with Several(torch.device("cpu")) as processes:
        return call(processes, *arguments)


def command_line(folder: Path, *arguments: str) -> tuple[str, str]:
    """What `lop ARGUMENTS` writes to stdout and stderr; it ends with its exit code unless that is 0."""
    import sys

    from lop.cli import main

    files = [folder / f"{os.environ['RANK']}.{name}" for name in ("out", "err")]
    os.environ["LOP_TORCH_DEVICE"] = "cpu"
    with files[0].open("w") as sys.stdout, files[1].open("w") as sys.stderr:
        sys.argv = ["lop", *arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    return files[0].read_text(), files[1].read_text()


def any_lower_kl_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers of the selection part prove nothing; here a lower KL is enough. Every step is saved."""
    monkeypatch.setattr("recovery.report.beats", lambda after, before: after.mean_kl < before.mean_kl)
    monkeypatch.setattr(AnswerScores, "accuracy", property(lambda _self: 0.0))
    monkeypatch.setattr("recovery.training.STATE_SECONDS", 0.0)


def recovered(
    processes: Processes,
    cut: Cut,
    out: Path,
    changes: dict[str, Any],
    on_step: Callable[[Processes, int], None] = lambda _processes, _step: None,
) -> tuple[dict[str, Any], list[str]]:
    """The report of `cut` recovered into `out` by `SETTINGS` with `changes`, and what was noted."""
    if processes.count > 1:  # a process of its own, to which the test's patches do not reach
        any_lower_kl_is_better(pytest.MonkeyPatch())
    recipe = Recipe.of(**SETTINGS | changes)
    notes: list[str] = []
    made = recover_folder(
        cut.pruned,
        cut.dense,
        recovery_data(cut.data, recipe=recipe),
        recipe,
        out,
        ears=Ears(watcher=Watcher(on_step=lambda done, *_: on_step(processes, done)), on_note=notes.append),
        processes=processes,
    )
    return made, notes
