"""How a worker tells the database how far a job is, and hears whether it is still wanted."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from storage.contract import Jobs
from storage.records import JobProgress, JobSignal

WRITE_SECONDS = 1.0
"""Between two writes of progress: more often tells nobody anything."""
MAX_LOG_LINES = 1000
"""Of one run of a job that are kept; more are left out, and that is said."""
MAX_LINE = 500
_EVENTS = 200
_WINDOW = 50


class JobStopped(BaseException):
    """Raised in a handler that reports progress of a job which is not wanted any more, or is another worker's.

    No Exception, so that no handler swallows it. What was stored so far stays.
    """

    def __init__(self, signal: JobSignal) -> None:
        super().__init__(signal.value)
        self.signal = signal


class JobReporter:
    """Told of every step of a job. Lines of the log may come from any thread, steps from that of the handler."""

    def __init__(
        self, repository: Jobs, job_id: str, worker: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._repository, self._job_id, self._worker = repository, job_id, worker
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._num_lines = 0
        self._steps: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._stage = ""
        self._told: tuple[str, int, float | None] = ("", -1, None)
        self._written_at = -float("inf")
        self._pending: JobProgress | None = None
        self.signal = JobSignal.CONTINUE

    def hear(self, signal: JobSignal) -> None:
        """Keep what the database said; a job that is not wanted any more stays so."""
        if self.signal is JobSignal.CONTINUE:
            self.signal = signal

    def step(self, done: int, total: int, stage: str, best: float | None = None, loss: float | None = None) -> None:
        """`done` of `total` steps of `stage` are done.

        Raises:
            JobStopped: the job was cancelled, or taken over; at every step the database is asked.
        """
        now = self._clock()
        if stage != self._stage:
            self._stage = stage
            self._steps.clear()
        self._steps.append((now, done))
        progress = JobProgress(done, total, stage, best, self._seconds_left(done, total), loss)
        self._pending = progress
        share = _EVENTS * done // max(total, 1)
        is_news = (stage, share, best) != self._told
        if is_news or done >= total or now - self._written_at >= WRITE_SECONDS:
            self._told = (stage, share, best)
            self._write(progress, as_event=is_news)
        else:
            self.hear(self._signal())
        if self.signal is not JobSignal.CONTINUE:
            raise JobStopped(self.signal)

    def check(self) -> None:
        """Between two steps that are far apart: raises JobStopped as `step`."""
        self.hear(self._signal())
        if self.signal is not JobSignal.CONTINUE:
            raise JobStopped(self.signal)

    def log(self, line: str) -> None:
        """Keep a line of the job's log; it is stored with the next step."""
        with self._lock:
            self._num_lines += 1
            if self._num_lines < MAX_LOG_LINES:
                self._lines.append(printable(line))
            elif self._num_lines == MAX_LOG_LINES:
                self._lines.append("further lines are in the worker's own log")

    def flush(self) -> None:
        """Store what is not stored yet."""
        self._write(self._pending, as_event=False)

    def _write(self, progress: JobProgress | None, *, as_event: bool) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        self.hear(
            self._repository.report_job(self._job_id, self._worker, progress=progress, as_event=as_event, log=lines)
        )
        self._written_at = self._clock()

    def _signal(self) -> JobSignal:
        return self._repository.job_signal(self._job_id, self._worker)

    def _seconds_left(self, done: int, total: int) -> float | None:
        """By the last steps: what was read from the memo of an earlier run went faster."""
        (before, first), (now, last) = self._steps[0], self._steps[-1]
        if last <= first or now <= before:
            return None
        return round((total - done) * (now - before) / (last - first), 1)


class JobLog(logging.Handler):
    """Within the block, what this process logs at INFO and above is also a line of the job's log."""

    def __init__(self, reporter: JobReporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.log(f"{record.levelname} {record.getMessage()}")

    def __enter__(self) -> "JobLog":
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)


_LOGGERS = ("lop", "mcts", "engines", "policy_model", "pruning", "service.worker", "service.searches")
"""Our own: what libraries say is of no interest to who asked for the job."""


def printable(text: str, *, most: int = MAX_LINE) -> str:
    """One line of at most `most` characters, of those that every database holds."""
    text = " ".join(text.split())[:most].replace("\0", "")
    return text.encode("utf-8", "backslashreplace").decode()
