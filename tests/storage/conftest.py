"""Every test that takes `repository`, `database_url` or `empty_url` runs on SQLite and on PostgreSQL."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage.database import upgrade
from storage.sql_repository import SqlRepository, open_repository
from tests.postgres import disposable_postgres_url, empty_postgres_url, postgres_server, postgres_url
from tests.storage.examples import store_basics
from tests.storage.workers import WorkerProcess

__all__ = ["disposable_postgres_url", "empty_postgres_url", "postgres_server", "postgres_url"]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def database_url(backend: str, sqlite_template: Path, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database at our revision, without rows."""
    return _copy(sqlite_template, tmp_path) if backend == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def disposable_url(backend: str, sqlite_template: Path, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database at our revision that the test may damage."""
    return (
        _copy(sqlite_template, tmp_path) if backend == "sqlite" else request.getfixturevalue("disposable_postgres_url")
    )


@pytest.fixture
def empty_url(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database with nothing in it: for SQLite, a file that is not there yet."""
    return f"sqlite:///{tmp_path / 'new.db'}" if backend == "sqlite" else request.getfixturevalue("empty_postgres_url")


def _copy(template: Path, folder: Path) -> str:
    return f"sqlite:///{shutil.copyfile(template, folder / 'store.db')}"


@pytest.fixture
def repository(database_url: str) -> Iterator[SqlRepository]:
    """Nothing stored yet."""
    with open_repository(database_url) as opened:
        yield opened


@pytest.fixture
def filled(repository: SqlRepository) -> SqlRepository:
    """A ranking, weights, model "m" and calibration set "c" are stored."""
    store_basics(repository)
    return repository


@pytest.fixture(scope="session")
def workers() -> Iterator[list[WorkerProcess]]:
    """Two other processes; the test itself is the third."""
    with ExitStack() as stack:
        yield [stack.enter_context(WorkerProcess()) for _ in range(2)]
