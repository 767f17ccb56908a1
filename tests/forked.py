"""Processes that start at once: forked from one that has imported what commands import, which takes seconds.

Each is a process like any other, with its own memory and number, to be killed or to run out of disk. Where it matters
that a command starts from nothing, a test runs `python -m lop.cli`.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "accelerate",
        "peft",
        "transformers.models.llava",
        "lop.cli",
        "lop.workflows.answering",
        "lop.workflows.searching",
        "service.planner",
        "tests.recovery.joint",
    ]
)


def start_lop(*arguments: object, stdout: Path, stderr: Path) -> ForkServerProcess:
    """`lop ARGUMENTS`, started, with its output in files."""
    return start(_lop, [str(argument) for argument in arguments], stdout=stdout, stderr=stderr)


def run_lop(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Stands for `subprocess.run` of `python -m lop.cli ARGUMENTS` whose output is captured as text."""
    assert command[:3] == [sys.executable, "-m", "lop.cli"]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start_lop(*command[3:], stdout=out, stderr=err)
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode or 0, out.read_text(), err.read_text())


def start(call: Callable[..., Any], *arguments: Any, stdout: Path, stderr: Path) -> ForkServerProcess:
    """`call(*arguments)` likewise; `call` must be importable."""
    process = CONTEXT.Process(target=_run, args=((stdout, stderr), dict(os.environ), call, arguments))
    process.start()
    return process


def _run(
    streams: tuple[Path, Path], environment: dict[str, str], call: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    os.environ.clear()  # it is that of the test which forked first
    os.environ.update(environment)
    for number, name in enumerate(streams, start=1):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    torch.set_num_threads(1)
    call(*arguments)


def _lop(arguments: list[str]) -> None:
    from lop.cli import main

    sys.argv = ["lop", *arguments]
    main()
