"""Whether more can be written, over both kinds of database and a folder; on a disk that is full, too."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from pruning.errors import StorageUnavailableError
from storage.data_store import FolderStore
from storage.sql_repository import SqlRepository, open_repository
from tests.full_disk import no_file_grows
from tests.storage.examples import model


def test_trying_leaves_nothing_and_is_no_commit(filled: SqlRepository, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir()), filled.commit_mark()
    for _ in range(3):
        filled.check_writable()
    assert (sorted(tmp_path.iterdir()), filled.commit_mark()) == before
    assert filled.list_models() == [model()]


def test_it_waits_for_no_other_writer(filled: SqlRepository) -> None:
    with filled._writing() as session:
        session.execute(text("UPDATE models SET path = 'elsewhere'"))
        filled.check_writable()


def test_a_full_disk_under_sqlite(sqlite_template: Path) -> None:
    with open_repository(f"sqlite:///{sqlite_template}") as repository:
        with no_file_grows(), pytest.raises(StorageUnavailableError, match=r"File too large.*free disk space"):
            repository.check_writable()
        repository.check_writable()


def test_a_file_that_is_read_only(sqlite_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.room.os.access", lambda *_: False)  # root may write to any file
    with (
        open_repository(f"sqlite:///{sqlite_template}") as repository,
        pytest.raises(StorageUnavailableError, match="cannot be written to"),
    ):
        repository.check_writable()


@pytest.mark.parametrize(
    ("setting", "words"),
    [("temp_file_limit = 0", "temp_file_limit"), ("default_transaction_read_only = on", "read-only")],
)
def test_a_postgresql_that_cannot_write(disposable_postgres_url: str, setting: str, words: str) -> None:
    """Nothing may be written to the disk of temporary files, as if it were full; or transactions are read-only."""
    with open_repository(disposable_postgres_url) as repository:
        repository.check_writable()
    _as_superuser(disposable_postgres_url, setting)
    with open_repository(disposable_postgres_url) as repository:
        repository.check()
        with pytest.raises(StorageUnavailableError, match=words):
            repository.check_writable()


def _as_superuser(url: str, setting: str) -> None:
    engine: Any = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f'ALTER DATABASE "{name}" SET {setting}'))
    engine.dispose()


def test_a_full_disk_under_a_data_store(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    with no_file_grows():
        store.check()  # the folder is made when something is put into it
    (tmp_path / "store").mkdir()
    store.check()
    with no_file_grows(), pytest.raises(StorageUnavailableError, match="File too large"):
        store.check()
    assert list((tmp_path / "store").iterdir()) == []
