"""Whether anything was committed meanwhile: one short question, instead of reading again what an answer came from."""

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


class CommitMarks:
    """Reads marks on a connection of its own, which writes nothing. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Any = None
        self._opened: tuple[int, object] | None = None
        self._number = 0
        self._lock = Lock()

    def read(self) -> str | None:
        """The mark of now; None if the database does not say."""
        with self._lock:
            try:
                of = (os.getpid(), self._file())
                if self._connection is None or self._opened != of:
                    self._open(of)
                cursor = self._connection.execute(_SQLITE if self._is_sqlite else _POSTGRESQL)
                return f"{self._number} {cursor.fetchone()[0]}"
            except (SQLAlchemyError, OSError, self._driver_error):
                self._forget()
                return None

    def close(self) -> None:
        """Close the connection. A later `read` opens another one."""
        with self._lock:
            self._forget()

    def _open(self, of: tuple[int, object]) -> None:
        self._forget()
        pooled = self._engine.raw_connection()
        self._connection, self._opened = pooled.driver_connection, of
        pooled.detach()  # the pool keeps its places for requests
        if not self._is_sqlite:
            self._connection.autocommit = True
        self._number += 1  # marks of two connections are not compared

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._opened is not None and self._opened[0] == os.getpid():
            close: Callable[[], None] = connection.close
            with suppress(self._driver_error):
                close()

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
