"""A private PostgreSQL for tests: started once a test run in a temporary folder, stopped and deleted at exit.

Import the fixtures into a conftest: `from tests.postgres import postgres_server, postgres_url`.
"""

import atexit
import functools
import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg
import pytest
from sqlalchemy.engine import make_url

from storage.database import upgrade
from storage.tables import Base


class PostgresServer:
    """A running server. Databases are made from a migrated template, and emptied instead of dropped where that does."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._folder = folder
        self._uri = make_url(uri)
        self._numbers = itertools.count(1)
        self._connections: dict[str, psycopg.Connection] = {}
        self._idle: list[str] = []
        atexit.register(self.close)  # before the server is stopped: handlers run in reverse order
        # It says goodbye at exit, when pytest has closed the stream that a test's logging may have been sent to.
        logging.getLogger("pgserver").setLevel(logging.WARNING)

    def url(self, name: str) -> str:
        """The URL of database `name`, as a user would write it."""
        return self._uri.set(database=name).render_as_string(hide_password=False)

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Run a statement as the superuser, outside of a transaction."""
        if database not in self._connections:
            self._connections[database] = psycopg.connect(self.url(database), autocommit=True)
        self._connections[database].execute(statement.encode())

    def create_database(self, *, migrated: bool) -> str:
        """The name of a new database, with our schema or empty, for tests that may damage it."""
        name = f"test_{next(self._numbers)}"
        template = self._template() if migrated else "template0"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, ending what is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def borrow_database(self) -> str:
        """The name of a database with our schema and no rows; give it back intact."""
        return self._idle.pop() if self._idle else self.create_database(migrated=True)

    def return_database(self, name: str) -> None:
        """Empty a borrowed database, which takes a fraction of the time of making another."""
        tables = ", ".join(Base.metadata.tables)
        self.execute(f"SET lock_timeout = '10s'; TRUNCATE {tables} RESTART IDENTITY", database=name)
        self._idle.append(name)

    @contextmanager
    def password_required(self, user: str, password: str) -> Iterator[None]:
        """A user who, unlike the superuser, must give a password; with all rights on the tables of every database."""
        rules = self._folder / "pg_hba.conf"
        before = rules.read_text()
        self.execute(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'")
        rules.write_text(f"local all {user} scram-sha-256\n{before}")  # the first rule that fits counts
        self.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            rules.write_text(before)
            self.execute("SELECT pg_reload_conf()")
            self.execute(f"DROP ROLE {user}")

    def url_as(self, url: str, user: str, password: str) -> str:
        """`url` for another user."""
        return make_url(url).set(username=user, password=password).render_as_string(hide_password=False)

    def close(self) -> None:
        """Close the connections of this class."""
        for connection in self._connections.values():
            connection.close()

    @functools.cache  # noqa: B019 (one server a test run)
    def _template(self) -> str:
        self.execute("CREATE DATABASE lop_template TEMPLATE template0")
        upgrade(self.url("lop_template"))
        return "lop_template"


class StoppableServer:
    """A server of its own, with one migrated database, for a test that stops it. Use as a context manager."""

    def __init__(self) -> None:
        start_server()  # which imports pgserver as it likes to be
        import pgserver

        self._folder = Path(tempfile.mkdtemp(prefix="lop-postgres-"))
        self._server = pgserver.get_server(self._folder, cleanup_mode="delete")
        self.url: str = self._server.get_uri()
        upgrade(self.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.cleanup()

    def stop(self) -> None:
        """As a crash would: connections break, and nobody listens."""
        import pgserver

        pgserver.pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=self._folder, user=self._server.system_user)

    def start(self) -> None:
        """Start again, with what was committed."""
        self._server.ensure_postgres_running()


@functools.cache
def start_server() -> PostgresServer:
    """The server of this test run, shared by every conftest that asks."""
    runtime = tempfile.mkdtemp(prefix="lop-runtime-")
    atexit.register(
        shutil.rmtree, runtime, ignore_errors=True
    )  # after the server, which locks a file in it, is stopped
    with pytest.MonkeyPatch.context() as patch:
        # Without a private runtime folder a dependency of pgserver warns when it is imported.
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        import pgserver

    folder = Path(tempfile.mkdtemp(prefix="lop-postgres-"))  # short: a socket's path has about 100 characters at most
    server = PostgresServer(pgserver.get_server(folder, cleanup_mode="delete").get_uri(), folder)
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # the machine does not crash during a test
        server.execute(f"ALTER SYSTEM SET {setting} = off")
    server.execute("SELECT pg_reload_conf()")
    return server


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """The private server."""
    return start_server()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database with our schema and no rows. Close what connects to it before the test ends."""
    name = postgres_server.borrow_database()
    yield postgres_server.url(name)
    postgres_server.return_database(name)


@pytest.fixture
def disposable_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Like `postgres_url`, for a test that damages the database."""
    name = postgres_server.create_database(migrated=True)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database without our schema."""
    name = postgres_server.create_database(migrated=False)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)
