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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.carried import take_up
from benchmarks.machine import COMMIT_AT_START
from benchmarks.measured_code import AT_START, ROOT, changes_since, measured_code
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
    """Runs steps, and keeps what they say in `folder`. One process at a time: its commands inherit the `lock`.

    With `renew`, a step whose code has changed since is done again, and the seconds of both times count: for steps that
    keep what is dear in them themselves.
    """

    def __init__(self, folder: Path, *, lock: int | None = None, renew: bool = False) -> None:
        self._folder, self._renew = folder, renew
        self._inherited = () if lock is None else (lock,)
        folder.mkdir(parents=True, exist_ok=True)
        self.finished: dict[str, Step] = {}

    def lop(self, name: str, *arguments: str, makes: Path | None = None) -> Step:
        """`lop ARGUMENTS --json` in a process of its own; `makes` is the file or folder that it writes.

        Raises RuntimeError if the command fails; what it said about that is on stderr.
        """
        runs = (f"lop.commands.{arguments[0]}",)
        code = partial(measured_code, runs)
        return self._once(name, arguments, lambda spent: self._command(arguments, makes, spent), code)

    def call(
        self, name: str, key: Sequence[str], function: Callable[[], dict[str, Any]], *, modules: Sequence[str] = ()
    ) -> Step:
        """`function` in this process; `key` says all that its result depends on.

        `modules`: what it runs, here or in processes that it starts; by default whatever this process has imported.
        """
        code = partial(_code_of, modules) if modules else measured_code
        return self._once(name, key, lambda spent: _while_counting(function, spent), code)

    def kept(self, name: str, key: Sequence[str]) -> Step | None:
        """What an earlier run kept of a `call` with this key; None if none was finished."""
        step = _kept_in(self._path(name, key))
        if step is not None:
            self.finished[name] = step
        return step

    def _path(self, name: str, key: Sequence[str]) -> Path:
        # Without the place of the checkout: what was kept counts in another one, too (`benchmarks.carried`).
        parts = [part.replace(f"{ROOT}/", "") for part in (name, *key)]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return self._folder / f"{name.replace(' ', '-')}-{digest}.json"

    def _once(
        self,
        name: str,
        key: Sequence[str],
        run: Callable[[Path], dict[str, Any]],
        code: Callable[[], dict[str, str]],
    ) -> Step:
        path = self._path(name, key)
        spent = path.with_suffix(".seconds")
        step, before = _kept_in(path), _seconds_in(spent)
        if step is not None and self._renew and changes_since(step.code):
            say(f"{name}: again, since its code has changed")
            before += step.seconds
            step = None
        if step is None:
            say(f"{name}: {' '.join(key)}")
            started = time.perf_counter()
            document = run(spent)
            seconds = before + time.perf_counter() - started
            step = Step(document, seconds, COMMIT_AT_START, code())
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


def _code_of(modules: Sequence[str]) -> dict[str, str]:
    """Of `modules` and all that they import."""
    return AT_START.digests(AT_START.reached(modules))


def _while_counting(function: Callable[[], dict[str, Any]], spent: Path) -> dict[str, Any]:
    """`function()`, while the seconds of this attempt and those before are written to `spent`."""
    before, started, ended = _seconds_in(spent), time.perf_counter(), threading.Event()

    def count() -> None:
        while not ended.wait(_HEARTBEAT_SECONDS):
            replace_file(spent, str(before + time.perf_counter() - started).encode())

    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        return function()
    finally:
        ended.set()
        counter.join()


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Waits until nobody else works in `folder`: another run, or the last command of one that was killed. What was
    measured on another machine, and carried here, is read into it (`benchmarks.carried`).

    Yields the descriptor that commands are to inherit: the lock is free when the last process that has it is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for what is still at work in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        if read := take_up(folder):
            say(f"read {read} files of measurements that were carried here")
        yield file.fileno()


def _kept_in(path: Path) -> Step | None:
    """None also for a step from before its code was kept: nobody can say what it was measured with."""
    document = json.loads(path.read_text()) if path.is_file() else {}
    return Step(**document) if "code" in document else None


def _seconds_in(path: Path) -> float:
    return float(path.read_text()) if path.is_file() else 0.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
