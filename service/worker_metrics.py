"""Figures of one worker for Prometheus. Servers count the jobs of all workers, in the database (`service.metrics`)."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, generate_latest, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from pruning.errors import InputError

_logger = logging.getLogger("service.worker")

EndOfJob = Callable[[str], None]
"""Says how a job ended for this worker."""

GIVEN_BACK = "given_back"
"""How a job ends that nothing else is said of: the worker was stopped, or its database went away."""


class WorkerMetrics:
    """The metrics of one worker, in a registry of its own. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._busy = Gauge("lop_worker_busy", "Whether a job is at hand, of any kind.", registry=self._registry)
        self._jobs = Counter(
            "lop_worker_jobs",
            "Jobs that ended for this worker: done, failed, cancelled, taken_over by another, given_back to the queue.",
            ["kind", "outcome"],
            registry=self._registry,
        )
        self._seconds = Summary(
            "lop_worker_job_seconds",
            "From claim to end, what was waited for included.",
            ["kind"],
            registry=self._registry,
        )

    @contextmanager
    def job(self, kind: str) -> Iterator[EndOfJob]:
        """The block runs a job of that kind."""
        outcome = GIVEN_BACK

        def ended(how: str) -> None:
            nonlocal outcome
            outcome = how

        started = time.monotonic()
        with self._busy.track_inprogress():
            try:
                yield ended
            finally:
                self._jobs.labels(kind, outcome).inc()
                self._seconds.labels(kind).observe(time.monotonic() - started)

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        return generate_latest(self._registry)

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[int]:
        """Answers `GET http://HOST:PORT/metrics` within the block, without a key; yields the port, where 0 is any.

        Raises InputError if nothing can listen there.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self._registry)
        except (OSError, OverflowError) as error:
            raise InputError(
                "metrics need an address of this machine and a free port",
                values=f"{host}:{port}: {error}",
                remedy="Choose another --metrics-port, or leave it out",
            ) from error
        bound = int(server.server_address[1])
        _logger.info("metrics are at http://%s:%d/metrics", host, bound)
        try:
            yield bound
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
