"""How many streams of events a server keeps open: each holds a connection and asks the database, without an end."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.metrics import ServiceMetrics
from service.places import Places


class EventStreams:
    """Counts the streams of one process; only touched on its event loop."""

    def __init__(self, most: int, metrics: ServiceMetrics) -> None:
        self._metrics = metrics
        self._places = Places(
            most,
            rule="a server keeps so many event streams open and no more",
            remedy="Wait as Retry-After says, ask GET /v1/jobs/{id} now and then, or raise LOP_MAX_EVENT_STREAMS",
        )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """For the time of a stream. Raises BusyError if there are as many as there may be."""
        with self._places.taken(), self._metrics.streams():
            yield
