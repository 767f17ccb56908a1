"""Figures for Prometheus. Labels are route templates, kinds and statuses: what has few values, never an id."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pruning.errors import LopError
from storage.contract import Jobs

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class ServiceMetrics:
    """The metrics of one application: each has its own registry, so that several may live in one process.

    Args:
        jobs: where jobs are counted when somebody asks; may raise.
    """

    def __init__(self, jobs: Callable[[], Jobs]) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._requests = Counter(
            "lop_http_requests",
            "Requests that were answered, by route template; '-': refused before there was one.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "lop_http_request_seconds",
            "From the first byte of a request's head to the last one of its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._in_flight = Gauge("lop_http_requests_in_flight", "Requests at hand.", registry=self._registry)
        self._streams = Gauge("lop_event_streams", "Streams of job events that are open.", registry=self._registry)
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._registry.register(_JobCollector(jobs))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. A method that is none of HTTP's own is counted as such: anybody can make some up."""
        key = (method if method in _METHODS else "other", route, status)
        found = self._children.get(key)
        if found is None:  # to look labels up takes longer than to count
            found = self._children[key] = (self._requests.labels(*key), self._seconds.labels(route))
        found[0].inc()
        found[1].observe(seconds)

    def in_flight(self) -> AbstractContextManager[Any]:
        """For the time of a request."""
        return self._in_flight.track_inprogress()

    def streams(self) -> AbstractContextManager[Any]:
        """For the time of an event stream."""
        return self._streams.track_inprogress()

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        return generate_latest(self._registry)


class _JobCollector(Collector):
    """Counts jobs in the database when it is asked to; says nothing of them while that is away."""

    def __init__(self, jobs: Callable[[], Jobs]) -> None:
        self._jobs = jobs

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        is_up = GaugeMetricFamily("lop_database_up", "Whether the database answered just now.")
        counts = GaugeMetricFamily("lop_jobs", "Jobs by kind and status.", labels=["kind", "status"])
        try:
            for (kind, status), number in sorted(self._jobs().job_counts().items()):
                counts.add_metric([kind, status], number)
        except LopError:
            is_up.add_metric([], 0)
            return [is_up]
        is_up.add_metric([], 1)
        return [is_up, counts]
