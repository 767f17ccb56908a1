"""How much of one thing a process does at once: so many places, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager

from pruning.errors import BusyError


class Places:
    """Counts what is at hand in one process; only touched on its event loop.

    Args:
        most: places that there are.
        rule: what whoever finds none is told, as a sentence without a full stop.
        remedy: what they can do.
    """

    def __init__(self, most: int, *, rule: str, remedy: str) -> None:
        self._most, self._rule, self._remedy = most, rule, remedy
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One of them, within the block. Raises BusyError if there is none."""
        if self._taken >= self._most:
            raise BusyError(self._rule, values=f"{self._most}", remedy=self._remedy)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
