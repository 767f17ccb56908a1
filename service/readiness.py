"""What `/readyz` finds out by trying, at most once in a few seconds: anybody may ask for it, as often as they like."""

import time
from collections.abc import Callable
from threading import Lock

from pruning.errors import LopError
from pruning.reasons import reason_of

REMEMBERED_SECONDS = 5.0


class RememberedCheck:
    """A check whose outcome is good for `REMEMBERED_SECONDS`. Thread-safe.

    Args:
        check: raises LopError or OSError for what is wrong. One at a time runs; who asks meanwhile gets what was found
            before, so that a disk that does not answer holds one thread and no more.
    """

    def __init__(self, check: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._check, self._clock = check, clock
        self._found: str | None = None
        self._until = -float("inf")
        self._running = Lock()

    def complaint(self) -> str | None:
        """What is wrong, as far as is known; None if nothing is."""
        if self._clock() >= self._until and self._running.acquire(blocking=False):
            try:
                self._found = self._ask()
                self._until = self._clock() + REMEMBERED_SECONDS
            finally:
                self._running.release()
        return self._found

    def _ask(self) -> str | None:
        try:
            self._check()
        except (LopError, OSError) as error:
            return reason_of(error)
        return None
