"""A copy of the whole database in one file, and back.

A backup is a SQLite database of our schema, whatever it is of: it can be looked at with any tool, needs no program of
PostgreSQL, and moves a service from one kind of database to the other. It is read in one transaction that sees one
moment (PostgreSQL: REPEATABLE READ; SQLite: any reader), so that servers and workers go on meanwhile; it is written
beside its place, checked, and linked to it. Restoring is one transaction, too, into a database without rows.

The content of data sets is in the data store, which is copied by what copies files.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Connection, Table, func, insert, inspect, select, text
from sqlalchemy.engine import URL

from pruning.errors import ConflictError, StorageError
from storage.database import check_revision, create_database_engine, database_errors, migrate
from storage.tables import Base
from storage.url import masked, parse_url

_ROWS: Final = 200
"""Rows that are in memory at once, but for artifacts, which are read one by one."""


def backup(url: str, file: Path) -> dict[str, int]:
    """Write the database at `url` into the new file; returns the rows of each table.

    Raises:
        StorageUnavailableError, SchemaRevisionError: the database cannot be read, or is at another revision.
        ConflictError: there is such a file.
        OSError: it cannot be written.
    """
    if file.exists():
        raise ConflictError("a backup is a new file", values=str(file), remedy="Name another one, or move that away")
    source = parse_url(url)
    handle, draft = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}-")
    os.close(handle)
    try:
        target = parse_url(f"sqlite:///{draft}")
        migrate(target, only_empty=True)
        with _snapshot(source) as reading, _writing(target) as writing:
            counts = _copy(reading, writing)
        _settle(Path(draft))
        os.link(draft, file)  # unlike a rename, it takes the place of nothing
    except FileExistsError as error:
        raise ConflictError("a backup is a new file", values=str(file), remedy="Name another one") from error
    finally:
        for end in ("", "-wal", "-shm"):
            Path(draft + end).unlink(missing_ok=True)
    return counts


def restore(file: Path, url: str) -> dict[str, int]:
    """Bring what a backup holds into the database at `url`, which has no rows; returns those of each table.

    An absent SQLite file and an absent schema are made. All or nothing.

    Raises:
        StorageUnavailableError: the backup or the database cannot be used.
        SchemaRevisionError: one of the two is at another revision.
        ConflictError: the database has rows.
    """
    source, target = parse_url(f"sqlite:///{file}"), parse_url(url)
    with _snapshot(source) as reading:
        migrate(target, only_empty=True)
        with _writing(target) as writing:
            full = [table.name for table in Base.metadata.sorted_tables if _count(writing, table)]
            if full:
                raise ConflictError(
                    "a backup is restored into a database without rows",
                    values=f"{', '.join(full)} of {masked(target)} have some",
                    remedy="Restore into a new database, then let LOP_DATABASE_URL name that",
                )
            counts = _copy(reading, writing)
            if writing.dialect.name == "postgresql":
                _count_on(writing)
            return counts


@contextmanager
def _snapshot(url: URL) -> Iterator[Connection]:
    """A transaction that sees one moment of a database at our revision."""
    engine = create_database_engine(url)
    try:
        check_revision(engine)
        options = {} if url.get_backend_name() == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        with database_errors(engine), engine.connect().execution_options(**options) as connection:
            connection.execute(text("SELECT 1 FROM alembic_version"))  # the moment is that of the first look
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _writing(url: URL) -> Iterator[Connection]:
    """A transaction that is committed at the end of the block, or rolled back if it raises."""
    engine = create_database_engine(url)
    try:
        check_revision(engine)
        with database_errors(engine), engine.execution_options(write=True).begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _copy(source: Connection, target: Connection) -> dict[str, int]:
    """All rows of all tables, those first that others refer to."""
    counts = {}
    for table in Base.metadata.sorted_tables:
        counts[table.name] = 0
        size = 1 if "content" in table.columns else _ROWS
        order = list(table.primary_key.columns)
        rows = source.execution_options(yield_per=size).execute(select(table).order_by(*order))
        for part in rows.mappings().partitions(size):
            counts[table.name] += len(part)
            target.execute(insert(table), cast("Sequence[dict[str, Any]]", [dict(row) for row in part]))
        if counts[table.name] != _count(target, table):
            raise StorageError("a copy has as many rows as what it is of", values=table.name)
    return counts


def _count(connection: Connection, table: Table) -> int:
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _count_on(connection: Connection) -> None:
    """Rows that are numbered by PostgreSQL get numbers after those that were restored."""
    for table in Base.metadata.sorted_tables:
        for column in inspect(connection).get_columns(table.name):
            sequence = connection.scalar(select(func.pg_get_serial_sequence(table.name, column["name"])))
            if sequence is not None:
                last = connection.scalar(select(func.max(table.columns[column["name"]])))
                connection.execute(select(func.setval(sequence, last or 1, last is not None)))


def _settle(path: Path) -> None:
    """What the log beside a SQLite file holds goes into the file; raises StorageError unless that is whole."""
    import sqlite3

    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
        [(found,)] = connection.execute("PRAGMA integrity_check").fetchmany(1)
        if found != "ok":
            raise StorageError("a backup must be whole", values=str(found))
    finally:
        connection.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())
