"""Waiting for a database that is not ready when a process starts.

Its server is away, since after a power cut it may be the last one up; or its schema is of another version, since what
upgrades it has been started at the same time.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from pruning.errors import LopError, SchemaRevisionError, StorageUnavailableError
from storage.url import parse_url

Opened = TypeVar("Opened")

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0

_logger = logging.getLogger("service")


def wait_for_database(url: str, ask: Callable[[], Opened]) -> Opened | None:
    """What `ask` returns, once it raises StorageUnavailableError no more; None if SIGTERM or SIGINT came before.

    Between two attempts it waits, each time twice as long, half a minute at most. A SQLite file is there or is not: of
    that, and of what waiting does not mend, `ask`'s error is raised at once.
    """
    if parse_url(url).get_backend_name() == "sqlite":
        return ask()
    pause = FIRST_PAUSE_SECONDS
    with _stop_signals() as stopping:
        while not stopping.is_set():
            try:
                return ask()
            except StorageUnavailableError as error:
                _logger.warning("the database is away, trying again in %g s: %s", pause, error)
            stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    _logger.info("stopped before the database was there")
    return None


def wait_for_schema(is_ours: Callable[[], bool], seconds: float) -> None:
    """Return once `is_ours` says so; it is asked every second, and may raise StorageUnavailableError meanwhile.

    Raises SchemaRevisionError if it says no when `seconds` have passed, or SIGTERM or SIGINT came; what else it raises,
    and then StorageUnavailableError too.
    """
    ends, told = time.monotonic() + seconds, ""
    with _stop_signals() as stopping:
        while True:
            error: LopError = SchemaRevisionError(
                "the schema must be of this version", remedy="Bring it there: lop db upgrade"
            )
            try:
                if is_ours():
                    return
            except StorageUnavailableError as away:
                error = away
            if stopping.is_set() or time.monotonic() >= ends:
                raise error
            if str(error) != told:
                told = str(error)
                _logger.warning("waiting: %s", told)
            stopping.wait(FIRST_PAUSE_SECONDS)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT, in the main thread; elsewhere never."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
