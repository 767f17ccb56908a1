"""Opening a database from its URL, keeping its schema at our revision, and saying plainly what is wrong with it."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, func, inspect, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from pruning.errors import InputError, LopError, SchemaRevisionError, StorageError, StorageUnavailableError
from pruning.reasons import reason_of
from storage import migration
from storage.fork_safety import drop_connections_of_parent
from storage.sqlite import create_file, create_sqlite_engine, enable_wal
from storage.tables import Base
from storage.url import masked, parse_url, without_secrets

CONNECT_TIMEOUT_SECONDS: Final = 10
_POSTGRESQL_OPTIONS: Final = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    # Of a host that is gone nobody says so, and the kernel would wait for a quarter of an hour (libpq's documentation).
    "tcp_user_timeout": CONNECT_TIMEOUT_SECONDS * 1000,
    "keepalives_idle": CONNECT_TIMEOUT_SECONDS,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
POOL_SIZE: Final = 5
MAX_OVERFLOW: Final = 15
POOL_TIMEOUT_SECONDS: Final = 30

_ADVISORY_LOCK: Final = 0x6C6F705F64620001  # "lop_db" and a number: one migration at a time in a PostgreSQL database
_alembic_lock = threading.Lock()  # Alembic keeps the migration that runs in module globals


def create_database_engine(url: URL, *, foreign_keys: bool = True) -> Engine:
    """An engine for a URL of `parse_url`; nothing is opened yet.

    `engine.execution_options(write=True)` is the engine to write with. `foreign_keys` turns SQLite's enforcement off.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_sqlite_engine(url, foreign_keys=foreign_keys, **_pool_options())
    else:
        options = {name: value for name, value in _POSTGRESQL_OPTIONS.items() if name not in url.query}
        engine = create_engine(url, connect_args=options, pool_pre_ping=True, **_pool_options())
    drop_connections_of_parent(engine)
    return engine


def _pool_options() -> dict[str, int]:
    return {"pool_size": POOL_SIZE, "max_overflow": MAX_OVERFLOW, "pool_timeout": POOL_TIMEOUT_SECONDS}


@contextmanager
def database_errors(engine: Engine, *, migrating: bool = False) -> Iterator[None]:
    """Turns what the driver raises into errors that a user can act on.

    When a statement failed, the schema is looked at first, unless it is being migrated.

    Raises:
        SchemaRevisionError: a statement failed, and the schema is not at our revision.
        StorageUnavailableError: the database cannot be reached, is not one, went away or refuses to work.
        InputError: a value that the database cannot hold (a NUL character, a lone surrogate).
    """
    try:
        yield
    except (DataError, UnicodeEncodeError) as error:
        reason = _reason(engine.url, error)
        raise InputError("a value cannot be stored", values=reason, remedy="Use plain Unicode text") from error
    except DBAPIError as error:
        if not (migrating or error.connection_invalidated or error.statement is None):
            _blame_schema(engine, error)
        if isinstance(error, IntegrityError):
            raise  # every constraint is checked before it could be violated: a bug of ours, not of the database
        raise unavailable(engine.url, error) from error
    except StatementError as error:
        if isinstance(error.orig, LopError):  # raised by a column type
            raise error.orig from None
        raise
    except PoolTimeoutError as error:
        raise StorageUnavailableError(
            "a database connection must become free in time",
            values=f"{POOL_SIZE + MAX_OVERFLOW} in use for {POOL_TIMEOUT_SECONDS} s, {masked(engine.url)}",
            remedy="Send fewer requests at once, or run more server processes",
        ) from error


def _blame_schema(engine: Engine, error: DBAPIError) -> None:
    """Raises SchemaRevisionError if the schema is why a statement failed."""
    try:
        with engine.connect() as connection:
            found = migration.read_revision(connection)
    except DBAPIError:
        return
    if found != migration.REVISIONS[-1]:
        raise _wrong_revision(engine.url, found) from error


def check_revision(engine: Engine) -> None:
    """Raises SchemaRevisionError unless the schema is at our revision, StorageUnavailableError if nothing answers."""
    with database_errors(engine), engine.connect() as connection:
        found = migration.read_revision(connection)
    if found != migration.REVISIONS[-1]:
        raise _wrong_revision(engine.url, found)


def upgrade(url: str) -> str:
    """Bring the database at `url` to our revision and return that; an absent SQLite file is created.

    One transaction: it happens completely or not at all. Safe when several processes do it at once: they take turns,
    and all but the first find nothing to do.

    Raises:
        InputError: not a URL of a database that is supported.
        StorageUnavailableError: the database cannot be opened or written.
        SchemaRevisionError: the schema is newer than this code, or the tables there are not ours.
    """
    migrate(parse_url(url), only_empty=False)
    return migration.REVISIONS[-1]


def migrate(url: URL, *, only_empty: bool) -> None:
    """`upgrade`; with `only_empty`, a database that has a revision already is left as it is."""
    sqlite_path = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    if sqlite_path is not None:
        try:
            create_file(sqlite_path)
        except OSError as error:
            raise unavailable(url, error) from error
    # SQLite changes a table by replacing it, which enforced foreign keys would answer by deleting what refers to it;
    # enforcement can only be switched outside of a transaction.
    engine = create_database_engine(url, foreign_keys=False)
    try:
        with (
            _alembic_lock,
            database_errors(engine, migrating=True),
            engine.execution_options(write=True).begin() as connection,
        ):
            lock_out_migrations(connection)
            _migrate_in_transaction(connection, url, only_empty=only_empty)
    finally:
        engine.dispose()
    share_between_processes(url)


def lock_out_migrations(connection: Connection) -> None:
    """Makes other migrations of the database wait until this transaction ends; on SQLite they do already."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))


def _migrate_in_transaction(connection: Connection, url: URL, *, only_empty: bool) -> None:
    found = migration.read_revision(connection)
    if found == migration.REVISIONS[-1] or (only_empty and found is not None):
        return
    if found is None:
        foreign = sorted(set(inspect(connection).get_table_names()) & set(Base.metadata.tables))
        if foreign:
            raise SchemaRevisionError(
                "the database has tables with our names that no migration of ours made",
                values=f"{', '.join(foreign)} in {masked(url)}",
                remedy="Use a database of its own",
            )
    elif found not in migration.REVISIONS:
        raise _wrong_revision(url, found)
    migration.run_migrations(connection)
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:  # which they did before: migrations keep what rows refer to
            table, row, referred, _ = broken[0]
            raise StorageError(
                "every row of a database must refer to rows that are there",
                values=f"{len(broken)} do not, first row {row} of {table}, of {referred}, in {masked(url)}",
                remedy="Nothing was changed. Restore a copy from before rows were deleted by hand, or delete those too",
            )


def share_between_processes(url: URL) -> None:
    """Puts an existing SQLite database into the mode in which readers and a writer do not wait for each other."""
    if url.get_backend_name() == "sqlite":
        try:
            enable_wal(Path(url.database or ""))
        except sqlite3.Error as error:
            raise unavailable(url, error) from error


def _wrong_revision(url: URL, found: str | None) -> SchemaRevisionError:
    expected = migration.REVISIONS[-1]
    command = f"lop db upgrade --database {masked(url)}"
    if found is None:
        rule, remedy = "the database has no schema yet", f"Create it with `{command}`"
    elif found in migration.REVISIONS:
        rule, remedy = "the database schema is older than this version", f"Make a backup, then run `{command}`"
    else:
        rule = "the database schema is newer than this version, or of another program"
        remedy = (
            f"Install the version of lop-service that wrote it (`pip install -U lop-service`), then run `{command}`"
        )
    values = f"found revision {found or 'none'}, expected {expected}, in {masked(url)}"
    return SchemaRevisionError(rule, values=values, remedy=remedy)


def unavailable(url: URL, error: Exception) -> StorageUnavailableError:
    """The error that tells a user why the database at `url` cannot be used, and what to do."""
    values = f"{masked(url)}: {_reason(url, error)}"
    if url.get_backend_name() != "sqlite":
        rule, remedy = (
            "the PostgreSQL server must answer",
            "Check that it runs, and host, port, user, password and name",
        )
        return StorageUnavailableError(rule, values=values, remedy=remedy)
    path = Path(url.database or "")
    if not path.parent.is_dir():
        rule, remedy = "the folder of the database must exist", f"Create it with `mkdir -p {path.parent}`"
    elif path.is_dir():
        rule, remedy = "the database must be a file", "Name a file inside of that folder"
    elif not path.exists():
        rule, remedy = "the database file must exist", f"Create it with `lop db upgrade --database {masked(url)}`"
    elif "not a database" in str(error):
        rule, remedy = "the file must be a SQLite database", "Check the path; the file was left as it is"
    elif "locked" in str(error):
        rule, remedy = "the database must become free in time", "Stop the process that holds it locked, then try again"
    else:
        rule, remedy = (
            "the database file must be readable and writable",
            "Check its permissions and the free disk space",
        )
    return StorageUnavailableError(rule, values=values, remedy=remedy)


def _reason(url: URL, error: Exception) -> str:
    """What the driver said, in one line and without the password."""
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    return without_secrets(url, reason_of(cause))
