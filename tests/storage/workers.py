"""Another process that works on the same database, driven over its standard input by one JSON line a command.

`python -m tests.storage.workers` is the process; `WorkerProcess` is the handle that tests hold.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from storage.database import upgrade
from storage.records import PlanRecord
from storage.sql_repository import open_repository
from tests.storage.examples import plan, sample

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """A running worker; commands are sent first and collected later, so that several workers run at once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.storage.workers"],
            cwd=REPOSITORY_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, command: str, url: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, "url": url, **arguments}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """The next answer; a worker that failed says so with its error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker died"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def kill(self) -> int:
        """SIGKILL; the process gets no chance to clean up. Returns how many answers it had still given."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        return len([line for line in self._process.stdout.read().split("\n") if line.endswith("}")])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def answer(result: Any) -> None:
    sys.stdout.write(json.dumps({"result": result}) + "\n")
    sys.stdout.flush()


def create(url: str) -> int:
    with open_repository(url, create=True) as repository:
        return repository.count_samples("m")


def write_samples(url: str, batches: list[list[int]]) -> int:
    with open_repository(url) as repository:
        return sum(repository.add_samples([sample(number) for number in batch]) for batch in batches)


def write_for_ever(url: str, batch_size: int) -> None:
    """Answers after every commit."""
    with open_repository(url) as repository:
        start = 1
        while True:
            answer(repository.add_samples([sample(number) for number in range(start, start + batch_size)]))
            start += batch_size


def claim_all(url: str, worker: str) -> list[str]:
    claimed = []
    with open_repository(url) as repository:
        while (job := repository.claim_job(worker, stale_after=timedelta(hours=1))) is not None:
            assert job.worker == worker
            claimed.append(job.id)
    return claimed


def add_plans(url: str, worker: str, request_keys: list[str]) -> list[str]:
    with open_repository(url) as repository:
        records = [PlanRecord(key, plan(f"{worker}-{key}")) for key in request_keys]
        return [repository.add_plan(record).plan.plan_id for record in records]


COMMANDS: dict[str, Callable[..., Any]] = {
    "create": create,
    "upgrade": upgrade,
    "write_samples": write_samples,
    "write_for_ever": write_for_ever,
    "claim_all": claim_all,
    "add_plans": add_plans,
}


def main() -> None:
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer(COMMANDS[arguments.pop("command")](**arguments))
        except Exception as error:  # noqa: BLE001 (the test shows it)
            sys.stdout.write(json.dumps({"error": repr(error)}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
