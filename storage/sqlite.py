"""SQLite as a database that several threads and processes share."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

BUSY_TIMEOUT_SECONDS: Final = 30.0
"""How long a write waits for the writers before it."""


def create_file(path: Path) -> None:
    """Create an empty database unless `path` exists; raises OSError.

    O_EXCL leaves a file that exists unopened: closing any descriptor of a file drops every POSIX lock that this
    process holds on it, SQLite's own included (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return


def enable_wal(path: Path) -> None:
    """Let readers go on while one process writes. The mode is a property of the file, kept when it is closed."""
    connection = _connect(path, foreign_keys=True)
    try:
        deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                # Changing the mode needs the file alone, and SQLite does not always wait for that by itself.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    finally:
        connection.close()


def create_sqlite_engine(url: URL, *, foreign_keys: bool = True, **options: Any) -> Engine:
    """An engine over the existing file `url.database`.

    Connections with the execution option `write=True` begin IMMEDIATE: the write lock is taken first and waited for.
    A transaction that reads first and writes later would fail at once with "database is locked" when another process
    wrote in between, however long the timeout. A connection whose file was removed or replaced is not used again,
    since its writes would go to a file without a name.
    """
    path = Path(url.database or "")
    engine = create_engine(
        url, creator=lambda: _connect(path, foreign_keys=foreign_keys), poolclass=QueuePool, **options
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    @event.listens_for(engine, "connect")
    def remember_file(_connection: Any, record: Any) -> None:
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def check_file(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info["file"] is None or record.info["file"] != _identity(path):
            raise DisconnectionError("the database file was removed or replaced")

    return engine


def _connect(path: Path, *, foreign_keys: bool) -> sqlite3.Connection:
    # mode=rw: a mistyped or vanished path is an error, never a new empty database. isolation_level=None: the engine's
    # BEGIN is the only one; the module's own would come late and leave schema changes outside of the transaction.
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # the pool hands a connection to one thread at a time
    )
    try:
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        # With WAL, NORMAL is safe against a killed process; a power cut can take the last commits, never the rest.
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
