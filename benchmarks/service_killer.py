"""SIGKILLs at random moments, and what was killed is started again.

Most kills are aimed at a worker that runs a job, and rather one of a kind that was hit less: most of the time goes to
searches, and kills at random would hardly ever hit a job that takes a second.
"""

import random
import threading
import time
from collections import Counter
from contextlib import suppress

from benchmarks.service_processes import Child, Postgres
from pruning.errors import StorageError
from storage.records import JobRecord, JobStatus
from storage.sql_repository import open_repository

LONGEST_PAUSE_SECONDS = 2.0
SHARE_AIMED, LONGEST_AIM_SECONDS = 0.7, 3.0


class Killer(threading.Thread):
    """Kills, and starts again, until it is told to stop. In `url` it looks who does what."""

    def __init__(self, children: list[Child], postgres: Postgres | None, url: str, seed: int, most: int) -> None:
        super().__init__(daemon=True)
        self._children, self._postgres, self._url, self.most = children, postgres, url, most
        self._random = random.Random(seed)
        self._hit: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.kills: Counter[str] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.wait(self._random.uniform(0, LONGEST_PAUSE_SECONDS)):
                self.revive()
                if sum(self.kills.values()) < self.most:
                    self._kill()
        except BaseException as error:  # noqa: BLE001 (the round that waits for it raises it)
            self.error = error

    def revive(self) -> None:
        """Start again what has ended by itself, as what is started while there is no database does, or a database that
        was hit while it recovered."""
        if self._postgres is not None:
            with suppress(AssertionError):  # pgserver's, of a server that runs and recovers from a kill
                self._postgres.start()
        for child in self._children:
            if not child.is_alive:
                child.start()

    def _kill(self) -> None:
        child = self._at_work() if self._random.random() < SHARE_AIMED else None
        if child is not None:
            self.kills[type(child).__name__] += child.kill()
            child.start()
        else:
            self._kill_any()

    def _at_work(self) -> Child | None:
        """A worker that runs a job: of the kind that was hit least, if one runs before long.

        None if none runs in a while, or all jobs have ended, or there is no database.
        """
        started, workers = time.monotonic(), {child.pid: child for child in self._children}
        with suppress(StorageError), open_repository(self._url) as repository:
            while (waited := time.monotonic() - started) < LONGEST_AIM_SECONDS and not self.stopping.is_set():
                left = [job for job in repository.list_jobs() if not job.status.is_final]
                if not left:
                    return None
                least = min(self._hit[job.kind] for job in left)
                for job in sorted(left, key=lambda job: self._hit[job.kind]):
                    child = workers.get(_process_of(job)) if job.status is JobStatus.RUNNING else None
                    if child is None or not child.is_alive:
                        continue
                    if self._hit[job.kind] == least or waited > LONGEST_AIM_SECONDS / 2:
                        self._hit[job.kind] += 1
                        time.sleep(self._random.choice((0.0, self._random.uniform(0, 0.3))))
                        return child
                time.sleep(0.02)
        return None

    def _kill_any(self) -> None:
        # What is starting is killed too, but not as often: else nothing would ever run.
        ready = [child for child in self._children if child.is_started or self._random.random() < 0.05]
        choices: list[Child | None] = [*ready, *([None] if self._postgres is not None else [])]
        if not choices:
            return
        child = self._random.choice(choices)
        if child is not None:
            self.kills[type(child).__name__] += child.kill()  # none of one that has ended by itself
            child.start()
            return
        assert self._postgres is not None
        with suppress(FileNotFoundError):  # no process id: it has given up since it was started
            if self._random.random() < 0.5:
                self.kills["backend"] += self._postgres.kill_backend(self._random.randrange(1000))
                return
            self.kills["postmaster"] += self._postgres.kill()
        time.sleep(self._random.uniform(0, 1))
        self._postgres.start()


def _process_of(job: JobRecord) -> int | None:
    """The process of its worker, by the name (`service.worker.worker_name`)."""
    return None if job.worker is None else int(job.worker.rsplit("-", 2)[1])
