"""Steps of a long benchmark, each of which is done once: its output is kept under a hash of what it computes.

Kill the benchmark anywhere and run it again: finished steps are read, the one that was interrupted begins anew (a
command of the product goes on by itself where it stopped), and the seconds of all of its attempts count.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import COMMIT_AT_START
from benchmarks.measured_code import measured_code
from pruning.atomic_file import replace_file

_HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step: the JSON document that it printed or returned, its wall-clock seconds, and the code it ran."""

    document: dict[str, Any]
    seconds: float
    commit: str
    code: dict[str, str]


class Steps:
    """Runs steps, and keeps what they say in `folder`. One process at a time: its commands inherit the `lock`."""

    def __init__(self, folder: Path, *, lock: int | None = None) -> None:
        self._folder = folder
        self._inherited = () if lock is None else (lock,)
        folder.mkdir(parents=True, exist_ok=True)
        self.finished: dict[str, Step] = {}

    def lop(self, name: str, *arguments: str, makes: Path | None = None) -> Step:
        """`lop ARGUMENTS --json` in a process of its own; `makes` is the file or folder that it writes.

        Raises RuntimeError if the command fails; what it said about that is on stderr.
        """
        runs = (f"lop.commands.{arguments[0]}",)
        return self._once(name, arguments, lambda spent: self._command(arguments, makes, spent), runs)

    def call(self, name: str, key: Sequence[str], function: Callable[[], dict[str, Any]]) -> Step:
        """`function` in this process; `key` says all that its result depends on."""
        return self._once(name, key, lambda _: function())

    def _once(
        self, name: str, key: Sequence[str], run: Callable[[Path], dict[str, Any]], runs: Sequence[str] = ()
    ) -> Step:
        digest = hashlib.sha256("\0".join([name, *key]).encode()).hexdigest()[:16]
        path = self._folder / f"{name.replace(' ', '-')}-{digest}.json"
        spent = path.with_suffix(".seconds")
        step = _kept_in(path)
        if step is None:
            say(f"{name}: {' '.join(key)}")
            before, started = _seconds_in(spent), time.perf_counter()
            document = run(spent)
            seconds = before + time.perf_counter() - started
            step = Step(document, seconds, COMMIT_AT_START, measured_code(runs))
            replace_file(path, json.dumps(asdict(step), indent=1).encode())
            spent.unlink(missing_ok=True)
            say(f"{name}: {seconds:.0f} s")
        self.finished[name] = step
        return step

    def _command(self, arguments: Sequence[str], makes: Path | None, spent: Path) -> dict[str, Any]:
        # Written by an attempt that was killed before its step was kept; commands overwrite nothing.
        if makes is not None and makes.is_dir():
            shutil.rmtree(makes)
        elif makes is not None:
            makes.unlink(missing_ok=True)
        before, started = _seconds_in(spent), time.perf_counter()
        command = [sys.executable, "-m", "lop.cli", *arguments, "--json"]
        with subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, text=True, pass_fds=self._inherited
        ) as process:
            while True:
                try:
                    stdout, _ = process.communicate(timeout=_HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    replace_file(spent, str(before + time.perf_counter() - started).encode())
                except BaseException:
                    process.terminate()
                    raise
        if process.returncode:
            raise RuntimeError(f"lop {' '.join(arguments)} failed with exit code {process.returncode}")
        document: dict[str, Any] = json.loads(stdout)
        return document


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Waits until nobody else works in `folder`: another run, or the last command of one that was killed.

    Yields the descriptor that commands are to inherit: the lock is free when the last process that has it is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for what is still at work in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _kept_in(path: Path) -> Step | None:
    """None also for a step from before its code was kept: nobody can say what it was measured with."""
    document = json.loads(path.read_text()) if path.is_file() else {}
    return Step(**document) if "code" in document else None


def _seconds_in(path: Path) -> float:
    return float(path.read_text()) if path.is_file() else 0.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
