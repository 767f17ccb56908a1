"""How many archives a server takes in at once: each lies on its disk until what it holds is stored."""

from collections.abc import Iterator
from contextlib import contextmanager

from pruning.errors import BusyError

MOST_UPLOADS = 4
"""Of one process. With `LOP_MAX_DATASET_BYTES` and the limits of what archives may hold, this bounds the disk that the
temporary folder needs; a machine is seldom sent data sets by more people at once."""


class Uploads:
    """Counts the uploads of one process; only touched on its event loop."""

    def __init__(self, most: int = MOST_UPLOADS) -> None:
        self._most = most
        self._open = 0

    @contextmanager
    def begun(self) -> Iterator[None]:
        """For the time of an upload, what is done with it included. Raises BusyError if there are as many as may be."""
        if self._open >= self._most:
            raise BusyError(
                "a server takes in so many data sets at once and no more",
                values=f"{self._most}",
                remedy="Send it again after the seconds that Retry-After says",
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
