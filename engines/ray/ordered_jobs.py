"""Jobs that several workers take in any order, and whose results come out in the order of the jobs."""

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")


class OrderedJobs(Generic[Result]):
    """Jobs 0..count-1, of which only the `window` after the last result that came out are handed out.

    So at most `window` results wait for an earlier one, or are lost if the process is killed.
    """

    def __init__(self, count: int, *, window: int) -> None:
        self._count = count
        self._window = window
        self._waiting = list(range(count))  # a heap: sorted to begin with
        self._results: dict[int, Result] = {}
        self._next = 0
        self._deaths: Counter[int] = Counter()

    @property
    def is_done(self) -> bool:
        """Whether every result was taken."""
        return self._next == self._count

    @property
    def available(self) -> int:
        """Jobs that could be taken now."""
        return sum(job < self._next + self._window for job in self._waiting)

    def take(self) -> int | None:
        """The first job that waits, None if there is none within the window."""
        if not self._waiting or self._waiting[0] >= self._next + self._window:
            return None
        return heapq.heappop(self._waiting)

    def finish(self, job: int, result: Result) -> None:
        """Book the result of a job that was taken."""
        self._results[job] = result

    def put_back(self, job: int) -> None:
        """A job that was taken and not begun waits again."""
        heapq.heappush(self._waiting, job)

    def put_back_dead(self, job: int) -> int:
        """A job whose worker died while at it waits again; returns how many workers died at it so far."""
        self.put_back(job)
        self._deaths[job] += 1
        return self._deaths[job]

    def results(self) -> Iterator[Result]:
        """The results that are next in order, as far as they are known; each comes out once."""
        while self._next in self._results:
            self._next += 1
            yield self._results.pop(self._next - 1)
