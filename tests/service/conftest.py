"""A real application over a real SQLite file, with models that exist only as numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pruning.errors import LopError
from service.app import create_app
from service.settings import Settings
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.service.made_up import register_model


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields.keys() - {"allowed_hosts"}:  # those of tests: tests/conftest.py
        monkeypatch.delenv(f"LOP_{name.upper()}", raising=False)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file at our revision: migrating once and copying is quicker than migrating for every test."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    open_repository(f"sqlite:///{path}", create=True).close()
    assert path.stat().st_size > 0
    return path


@pytest.fixture(scope="session")
def database_of_tiny(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """The same with one model, "tiny"."""
    path = tmp_path_factory.mktemp("database") / "tiny.db"
    path.write_bytes(empty_database.read_bytes())
    with open_repository(f"sqlite:///{path}", create=False) as repository:
        register_model(repository)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing of it waits in a log
    return path


@pytest.fixture
def database_url(tmp_path: Path, empty_database: Path) -> str:
    path = tmp_path / "lop.db"
    path.write_bytes(empty_database.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url)


@pytest.fixture
def repository(database_url: str, database_of_tiny: Path) -> Iterator[Repository]:
    """The database of `client`, with one model called "tiny"."""
    Path(database_url.removeprefix("sqlite:///")).write_bytes(database_of_tiny.read_bytes())
    repository = open_repository(database_url, create=False)
    yield repository
    repository.close()


@pytest.fixture
def client(settings: Settings, repository: Repository) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


class AwayRepository:
    """A repository whose every method raises the same error."""

    def __init__(self, error: LopError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., None]:
        def method(*args: object, **kwargs: object) -> None:
            raise self._error

        return method
