"""The worker loop: claims queued searches and runs them, one at a time, until it is told to stop.

The database is the queue. A claim is kept alive by heartbeats from a thread; a worker that dies stops sending them,
and after `stale_after` another one takes its search over. The search then replays from the stored samples, so what is
lost are the evaluations in flight: it is deterministic and memoised.
"""

import json
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

from pruning.errors import InputError, LopError, StorageUnavailableError
from storage.contract import Jobs
from storage.records import SearchRecord

Handler = Callable[[SearchRecord], dict[str, Any]]
"""Runs a claimed search and returns its result, a JSON document. May raise: the search is then marked failed."""

_logger = logging.getLogger("service.worker")


class WorkerStopped(BaseException):
    """Raised inside the handler when the process is told to stop; no Exception, so that no handler swallows it."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker waits.

    Attributes:
        poll_seconds: between two looks at an empty queue.
        heartbeat_seconds: between two signs of life.
        stale_seconds: without a sign of life before another worker takes a search over; several heartbeats.
        once: run what is queued and return, instead of waiting for more.
    """

    poll_seconds: float = 2.0
    heartbeat_seconds: float = 10.0
    stale_seconds: float = 60.0
    once: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.poll_seconds < float("inf") or not 0 < self.heartbeat_seconds < float("inf"):
            raise InputError(
                "a worker waits for a positive number of seconds",
                values=f"poll {self.poll_seconds}, heartbeat {self.heartbeat_seconds}",
            )
        if not 2 * self.heartbeat_seconds <= self.stale_seconds < float("inf"):
            raise InputError(
                "a search may go stale only after at least two missed heartbeats",
                values=f"stale after {self.stale_seconds} s, heartbeat every {self.heartbeat_seconds} s",
                remedy="Raise stale_seconds or lower heartbeat_seconds",
            )


def worker_name() -> str:
    """A name that no other worker has, and that tells an operator where to look."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Worker:
    """One worker. `run` returns after SIGTERM, SIGINT or `stop`, or with `once` when the queue is empty.

    A search that is running when the worker stops is left as it is and taken over when it goes stale.
    """

    def __init__(
        self, repository: Jobs, handler: Handler, *, options: WorkerOptions | None = None, name: str | None = None
    ) -> None:
        self.name = name or worker_name()
        self._repository = repository
        self._handler = handler
        self._options = options or WorkerOptions()
        self._stopping = threading.Event()
        self._handling = False

    def stop(self) -> None:
        """Return after the search at hand. May be called from any thread."""
        self._stopping.set()

    def run(self) -> int:
        """Work; returns how many searches were finished, failed ones included.

        A database that goes away is waited for, except with `once`.

        Raises:
            StorageError: the database cannot be used (unavailable only with `once`).
        """
        finished = 0
        with self._stop_on_signals():
            _logger.info("worker %s waits for searches", self.name)
            while not self._stopping.is_set():
                try:
                    search = self._repository.claim_search(
                        self.name, stale_after=timedelta(seconds=self._options.stale_seconds)
                    )
                    if search is not None:
                        finished += self._work_on(search)
                        continue
                except StorageUnavailableError as error:
                    if self._options.once:
                        raise
                    _logger.warning("the database is away, trying again: %s", error)
                except WorkerStopped:
                    _logger.info("stopped within a search; another worker will take it over")
                    break
                if self._options.once:
                    break
                self._stopping.wait(self._options.poll_seconds)
        _logger.info("worker %s stopped", self.name)
        return finished

    def _work_on(self, search: SearchRecord) -> bool:
        """Run one claimed search and write down how it ended; False if the claim was lost meanwhile."""
        _logger.info("search %s of model %s begins", search.id, search.model_id)
        result: dict[str, Any] | None = None
        failure: str | None = None
        with self._heartbeats(search):
            try:
                result = self._handle(search)
                json.dumps(result, allow_nan=False)
            except StorageUnavailableError:
                raise  # nothing can be written down now; the search goes stale and is run again
            except LopError as error:
                failure = str(error)
                _logger.warning("search %s failed: %s", search.id, failure)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
                _logger.exception("search %s failed", search.id)
            kept = self._repository.finish_search(
                search.id, self.name, result=None if failure else result, error=failure
            )
        if not kept:
            _logger.warning("search %s was taken over by another worker; its result here is dropped", search.id)
        elif failure is None:
            _logger.info("search %s is done", search.id)
        return kept

    def _handle(self, search: SearchRecord) -> dict[str, Any]:
        self._handling = True
        try:
            # A signal between the claim and this line found nothing to interrupt.
            if self._stopping.is_set():
                raise WorkerStopped
            return self._handler(search)
        finally:
            self._handling = False

    @contextmanager
    def _heartbeats(self, search: SearchRecord) -> Iterator[None]:
        """Keep the claim on `search` alive while the block runs."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._options.heartbeat_seconds):
                try:
                    if not self._repository.heartbeat(search.id, self.name):
                        _logger.warning("search %s is no longer this worker's", search.id)
                        return
                except LopError as error:
                    _logger.warning("heartbeat of search %s: %s", search.id, error)

        thread = threading.Thread(target=beat, name=f"heartbeat-{search.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """In the main thread, let SIGTERM and SIGINT stop the worker, at once even within a search."""
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
    repository: Jobs, handler: Handler, *, options: WorkerOptions | None = None, name: str | None = None
) -> int:
    """Run one worker until it is told to stop; returns how many searches it finished. Raises as `Worker.run`."""
    return Worker(repository, handler, options=options, name=name).run()
