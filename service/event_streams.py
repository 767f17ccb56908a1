"""How many streams of events a server keeps open: each holds a connection and asks the database, without an end."""

from collections.abc import Iterator
from contextlib import contextmanager

from pruning.errors import BusyError
from service.metrics import ServiceMetrics


class EventStreams:
    """Counts the streams of one process; only touched on its event loop."""

    def __init__(self, most: int, metrics: ServiceMetrics) -> None:
        self._most, self._metrics = most, metrics
        self._open = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """For the time of a stream. Raises BusyError if there are as many as there may be."""
        if self._open >= self._most:
            raise BusyError(
                "a server keeps so many event streams open and no more",
                values=f"{self._most}",
                remedy="Wait as Retry-After says, ask GET /v1/jobs/{id} now and then, or raise LOP_MAX_EVENT_STREAMS",
            )
        self._open += 1
        try:
            with self._metrics.streams():
                yield
        finally:
            self._open -= 1
