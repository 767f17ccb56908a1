"""Whether anything was committed meanwhile: one short question, instead of reading again what an answer came from."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

_SQLITE = "PRAGMA data_version"
"""Another number after every commit of another connection; to be compared on one connection only (sqlite.org)."""
_POSTGRESQL = "SELECT pg_current_snapshot()::text"
"""The transactions that are visible now: while it stays the same, the same rows are."""
ANSWER_SECONDS = 2.0
"""For PostgreSQL's answer, which takes under a millisecond. All requests that may be answered again wait for it: of a
server that is silent they need not hear here."""
_Connection = Any
"""Of the driver: sqlite3's or psycopg's."""


class CommitMarks:
    """Reads marks on a connection of its own, which writes nothing. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: _Connection = None
        self._opened: tuple[int, object] | None = None
        self._number = 0  # another one whenever a connection is opened or closed: marks of two are not compared
        self._lock = Lock()

    def read(self) -> str | None:
        """The mark of now; None if the database does not say."""
        with self._lock:
            try:
                of = self._of()
                if self._connection is None or self._opened != of:
                    self._open(of)
                cursor = self._connection.execute(_SQLITE if self._is_sqlite else _POSTGRESQL)
                return f"{self._number} {cursor.fetchone()[0]}"
            except (SQLAlchemyError, OSError, self._driver_error):
                self._forget()
                return None

    async def read_on_loop(self) -> str | None:
        """`read` that blocks no event loop.

        PostgreSQL is waited for on the loop itself: a thread would take the interpreter's lock from the loop at each of
        its system calls, which made answers of a busy server a third slower.
        """
        loop = asyncio.get_running_loop()
        number, connection = self._taken()
        if connection is None:
            return await loop.run_in_executor(None, self.read)
        found = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await _asked(connection, loop)
        except (OSError, self._driver_error):  # of which TimeoutError is one
            return None
        finally:
            # Nobody else has it now: closed where it failed, was cancelled, or `close` came meanwhile.
            self._give_back(connection, number, is_sound=found is not None)
        return None if found is None else f"{number} {found}"

    def close(self) -> None:
        """Close the connection. A later `read` opens another one."""
        with self._lock:
            self._number += 1
            self._forget()

    def _taken(self) -> tuple[int, _Connection]:
        """The open connection to PostgreSQL with its number; None in its place if there is none, or others have it."""
        if self._is_sqlite or not self._lock.acquire(blocking=False):  # a thread may be opening one, for seconds
            return self._number, None
        try:
            if self._opened != self._of():
                return self._number, None
            connection, self._connection = self._connection, None
            return self._number, connection
        finally:
            self._lock.release()

    def _give_back(self, connection: _Connection, number: int, *, is_sound: bool) -> None:
        with self._lock:
            is_sound = is_sound and self._number == number
            if is_sound:
                self._connection = connection
        if not is_sound:
            self._close(connection)

    def _open(self, of: tuple[int, object]) -> None:
        self._forget()
        pooled = self._engine.raw_connection()
        self._connection, self._opened = pooled.driver_connection, of
        pooled.detach()  # the pool keeps its places for requests
        if not self._is_sqlite:
            self._connection.autocommit = True
        self._number += 1

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._opened is not None and self._opened[0] == os.getpid():
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        close: Callable[[], None] = connection.close
        with suppress(self._driver_error):
            close()

    def _of(self) -> tuple[int, object]:
        """What a connection is of: this process and the file."""
        return os.getpid(), self._file()

    def _file(self) -> object:
        """Of SQLite: a file that took this one's place is another database."""
        if not self._is_sqlite:
            return None
        status = Path(self._engine.url.database or "").stat()
        return status.st_dev, status.st_ino

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @property
    def _driver_error(self) -> type[Exception]:
        found: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        return found


async def _asked(connection: _Connection, loop: asyncio.AbstractEventLoop) -> str | None:
    """What PostgreSQL answers, by libpq's own calls for who waits elsewhere; None for an error.

    Raises as the driver does.
    """
    libpq, found = connection.pgconn, None
    libpq.send_query(_POSTGRESQL.encode())
    while True:
        while libpq.is_busy():
            await _readable(libpq.socket, loop)
            libpq.consume_input()
        result = libpq.get_result()
        if result is None:  # the end of the answer: only now the connection can be asked again
            return found
        found = result.get_value(0, 0).decode() if result.ntuples else None


async def _readable(socket: int, loop: asyncio.AbstractEventLoop) -> None:
    """Returns when there is something to read."""
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(socket, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(socket)


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
