"""The worker loop: claims queued jobs and runs them, one at a time, until it is told to stop.

The database is the queue. A claim is kept alive by heartbeats from a thread; a worker that dies stops sending them,
and after `stale_after` another one takes its job over, at most `max_attempts` times. A search then replays from the
stored samples, so what is lost are the evaluations in flight: it is deterministic and memoised. A worker that is told
to stop gives its job back.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

from pruning.errors import InputError, LopError, StorageUnavailableError
from service.jobs.reporting import JobLog, JobReporter, JobStopped, printable
from service.tracing import NOTHING_TRACED, Tracing
from service.worker_metrics import WorkerMetrics
from storage.contract import Jobs
from storage.data_store import DataStoreUnavailableError
from storage.records import JobRecord, JobSignal

Handler = Callable[[JobRecord, JobReporter], dict[str, Any]]
"""Runs a claimed job and returns its result, a JSON document. Tells the reporter how far it is, which may raise to stop
it. May raise: the job is then marked failed."""

MAX_FAILURE = 2000
"""Characters of why a job failed."""

_logger = logging.getLogger("service.worker")


class WorkerStopped(BaseException):
    """Raised inside the handler when the process is told to stop; no Exception, so that no handler swallows it."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker waits, and what it takes.

    Attributes:
        poll_seconds: between two looks at an empty queue.
        heartbeat_seconds: between two signs of life.
        stale_seconds: without a sign of life before another worker takes a job over; several heartbeats.
        max_attempts: workers that a job may lose before it is parked.
        kinds: of jobs that it takes; None: all.
        store_pauses: seconds before a job whose data store cannot be used is tried again, one for each time. After the
            last one it fails if the store itself can be used by then; else it waits on, the last pause each time, and
            so does the queue, whose jobs need the same store. With `once` nothing is waited for.
        once: run what is queued and return, instead of waiting for more.
    """

    poll_seconds: float = 2.0
    heartbeat_seconds: float = 10.0
    stale_seconds: float = 60.0
    max_attempts: int = 3
    kinds: Sequence[str] | None = None
    store_pauses: Sequence[float] = (5, 15, 45, 120)
    once: bool = False

    def __post_init__(self) -> None:
        if not self.store_pauses or not all(0 < pause < float("inf") for pause in self.store_pauses):
            raise InputError("a worker pauses for positive numbers of seconds", values=f"{self.store_pauses}")
        if not 0 < self.poll_seconds < float("inf") or not 0 < self.heartbeat_seconds < float("inf"):
            raise InputError(
                "a worker waits for a positive number of seconds",
                values=f"poll {self.poll_seconds}, heartbeat {self.heartbeat_seconds}",
            )
        if not 2 * self.heartbeat_seconds <= self.stale_seconds < float("inf"):
            raise InputError(
                "a job may go stale only after at least two missed heartbeats",
                values=f"stale after {self.stale_seconds} s, heartbeat every {self.heartbeat_seconds} s",
                remedy="Raise stale_seconds or lower heartbeat_seconds",
            )


def worker_name() -> str:
    """A name that no other worker has, and that tells an operator where to look."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Worker:
    """One worker. `run` returns after SIGTERM, SIGINT or `stop`, or with `once` when the queue is empty."""

    def __init__(
        self,
        repository: Jobs,
        handler: Handler,
        *,
        options: WorkerOptions | None = None,
        name: str | None = None,
        tracing: Tracing = NOTHING_TRACED,
        metrics: WorkerMetrics | None = None,
        check_store: Callable[[], None] | None = None,
    ) -> None:
        self.name = name or worker_name()
        self._metrics = metrics or WorkerMetrics()
        self._check_store = check_store
        self._repository = repository
        self._handler = handler
        self._options = options or WorkerOptions()
        self._tracing = tracing
        self._stopping = threading.Event()
        self._handling = False
        self._to_release: str | None = None

    def stop(self) -> None:
        """Return after the job at hand. May be called from any thread."""
        self._stopping.set()

    def run(self) -> int:
        """Work; returns how many jobs were ended, failed ones included.

        A database that goes away is waited for, except with `once`; the job at hand is then given back when it returns.

        Raises:
            StorageError: the database cannot be used (unavailable only with `once`).
        """
        ended = 0
        with self._stop_on_signals():
            _logger.info("worker %s waits for jobs", self.name)
            while not self._stopping.is_set():
                try:
                    self._release()
                    job = self._repository.claim_job(
                        self.name,
                        stale_after=timedelta(seconds=self._options.stale_seconds),
                        kinds=self._options.kinds,
                        max_attempts=self._options.max_attempts,
                    )
                    if job is not None:
                        ended += self._work_on(job)
                        continue
                except StorageUnavailableError as error:
                    if self._options.once:
                        raise
                    _logger.warning("the database is away, trying again: %s", error)
                except WorkerStopped:
                    _logger.info("stopped within a job; it is given back to the queue")
                    break
                if self._options.once:
                    break
                self._stopping.wait(self._options.poll_seconds)
        try:
            self._release()
        except StorageUnavailableError as error:
            _logger.warning("the job at hand is taken over when it goes stale: %s", error)
        _logger.info("worker %s stopped", self.name)
        return ended

    def _release(self) -> None:
        if self._to_release is not None:
            self._repository.release_job(self._to_release, self.name)
            self._to_release = None

    def _work_on(self, job: JobRecord) -> bool:
        """Run one claimed job and write down how it ended; False if the claim was lost meanwhile."""
        _logger.info("%s job %s of model %s begins", job.kind, job.id, job.model_id)
        result: dict[str, Any] | None = None
        failure: str | None = None
        is_cancelled = False
        reporter = JobReporter(self._repository, job.id, self.name)
        self._to_release = job.id
        with (
            self._metrics.job(job.kind) as ended,
            self._tracing.job(job) as traced,
            self._heartbeats(job, reporter),
            JobLog(reporter),
        ):
            try:
                result = self._handle(job, reporter)
                json.dumps(result, allow_nan=False)
            except DataStoreUnavailableError as error:
                if self._options.once:
                    raise
                # The database is well. Given back to the queue, the job would be the next one again, for ever.
                failure = str(error)
                _logger.warning("job %s failed: %s", job.id, failure)
            except StorageUnavailableError:
                raise  # nothing can be written down now
            except JobStopped as stopped:
                is_cancelled = stopped.signal is JobSignal.CANCEL
            except LopError as error:
                failure = str(error)
                _logger.warning("job %s failed: %s", job.id, failure)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
                _logger.exception("job %s failed", job.id)
            traced(failure)
            reporter.flush()
            kept = self._repository.finish_job(
                job.id,
                self.name,
                result=None if failure is not None or is_cancelled else result,
                error=None if failure is None else printable(failure, most=MAX_FAILURE),
                cancelled=is_cancelled,
            )
            how = "failed" if failure is not None else "cancelled" if is_cancelled else "done"
            ended(how if kept else "taken_over")
        self._to_release = None
        if not kept:
            _logger.warning("job %s was taken over by another worker; its result here is dropped", job.id)
        elif failure is None:
            _logger.info("job %s is %s", job.id, how)
        return kept

    def _handle(self, job: JobRecord, reporter: JobReporter) -> dict[str, Any]:
        """The handler's result; a data store that cannot be used is waited for, as `store_pauses` says."""
        self._handling = True
        pauses = list(self._options.store_pauses)
        try:
            while True:
                try:
                    return self._handle_once(job, reporter)
                except DataStoreUnavailableError as error:
                    if self._options.once or (len(pauses) <= 1 and self._store_works()):
                        raise
                    pause = pauses.pop(0) if len(pauses) > 1 else pauses[0]
                    _logger.warning("trying again in %g s: %s", pause, error)
                    self._wait(pause, reporter)
        finally:
            self._handling = False

    def _store_works(self) -> bool:
        """Whether it is this job alone that the data store fails."""
        try:
            if self._check_store is not None:
                self._check_store()
        except StorageUnavailableError:
            return False
        return True

    def _handle_once(self, job: JobRecord, reporter: JobReporter) -> dict[str, Any]:
        # A signal between the claim and this line found nothing to interrupt.
        if self._stopping.is_set():
            raise WorkerStopped
        return self._handler(job, reporter)

    def _wait(self, seconds: float, reporter: JobReporter) -> None:
        """Raises JobStopped if the job is cancelled or taken over meanwhile; ends early if the worker is to stop."""
        reporter.flush()  # why it waits is in the job's log
        ends = time.monotonic() + seconds
        while not self._stopping.wait(max(0.0, min(self._options.poll_seconds, ends - time.monotonic()))):
            reporter.check()
            if time.monotonic() >= ends:
                return

    @contextmanager
    def _heartbeats(self, job: JobRecord, reporter: JobReporter) -> Iterator[None]:
        """Keep the claim on `job` alive while the block runs."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._options.heartbeat_seconds):
                try:
                    reporter.hear(self._repository.heartbeat_job(job.id, self.name))
                    if reporter.signal is JobSignal.LOST:
                        _logger.warning("job %s is no longer this worker's", job.id)
                        return
                except LopError as error:
                    _logger.warning("heartbeat of job %s: %s", job.id, error)

        thread = threading.Thread(target=beat, name=f"heartbeat-{job.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """In the main thread, let SIGTERM and SIGINT stop the worker, at once even within a job."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._stopping.set()
            if self._handling:
                self._handling = False  # a second signal must not interrupt the cleaning up
                raise WorkerStopped

        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def run_worker(
    repository: Jobs,
    handler: Handler,
    *,
    options: WorkerOptions | None = None,
    name: str | None = None,
    tracing: Tracing = NOTHING_TRACED,
    metrics: WorkerMetrics | None = None,
    check_store: Callable[[], None] | None = None,
) -> int:
    """Run one worker until it is told to stop; returns how many jobs it ended. Raises as `Worker.run`.

    `check_store` raises DataStoreUnavailableError if the data store cannot be used at all.
    """
    return Worker(
        repository, handler, options=options, name=name, tracing=tracing, metrics=metrics, check_store=check_store
    ).run()
