"""Removing data sets that no job needs any more, over both kinds of database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pruning.data.conversations import Conversation, Turn
from pruning.errors import InputError
from service.datasets import DatasetShelf
from storage.data_store import DataStoreUnavailableError, FolderStore, open_store
from storage.integrity import check_database
from storage.old_datasets import OldDatasets, old_datasets, remove_old_datasets
from storage.records import DatasetRecord, NewJob
from storage.sql_repository import SqlRepository
from tests.storage.examples import MORNING, dataset

HOUR = timedelta(hours=1)
SIZE = 5_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def hand_in(repository: SqlRepository, store: FolderStore, folder: Path, name: str, **facts: Any) -> str:
    source = folder / name
    source.write_text(name)
    sha256 = store.put(source)
    repository.add_dataset(replace(dataset(sha256), **facts))
    return sha256


def soon() -> datetime:
    return datetime.now(UTC) + HOUR


def test_what_no_job_needs_goes_with_its_content(
    repository: SqlRepository, database_url: str, store: FolderStore, tmp_path: Path
) -> None:
    names = ("free", "done", "trained", "selected", "validated", "reconstructed", "new")
    ids = {name: hand_in(repository, store, tmp_path, name) for name in names[:-1]}
    ids["new"] = hand_in(repository, store, tmp_path, "new", created_at=datetime.now(UTC))
    done = repository.add_job(NewJob("register", "m", {"dataset": ids["done"]}, "somebody"))[0]
    assert repository.claim_job("w", stale_after=HOUR) is not None
    repository.finish_job(done.id, "w", result={})
    parts = {"dataset": ids["trained"], "selection": ids["selected"], "validation": ids["validated"]}
    failed = repository.add_job(NewJob("recover", "m", parts, "somebody"))[0]
    repository.cancel_job(failed.id, stale_after=HOUR)
    repository.add_job(NewJob("apply", "m", {"reconstruct": ids["reconstructed"], "plan": "p"}, "somebody"))

    before = MORNING + HOUR
    expected = OldDatasets(2, 2 * SIZE, 4)
    assert old_datasets(database_url, before) == expected
    assert len(repository.list_datasets()) == 7  # nothing was removed
    assert remove_old_datasets(database_url, store, before) == expected
    stayed = set(names) - {"free", "done"}
    assert {record.id for record in repository.list_datasets()} == {ids[name] for name in stayed}
    assert {name for name in names if store.has(ids[name])} == stayed
    assert remove_old_datasets(database_url, store, before) == OldDatasets(0, 0, 4)
    assert check_database(database_url, store).findings == ()


def test_killed_in_between_it_goes_on(
    repository: SqlRepository, database_url: str, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content goes first, so a record that is left says what there is yet to remove."""
    first, second = (hand_in(repository, store, tmp_path, name) for name in ("a", "b"))
    remove = FolderStore.remove

    def killed(self: FolderStore, sha256: str) -> None:
        remove(self, sha256)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_old_datasets(database_url, store, soon())
    assert sorted(store.has(name) for name in (first, second)) == [False, True]
    assert len(repository.list_datasets()) == 2
    assert remove_old_datasets(database_url, store, soon()) == OldDatasets(2, 2 * SIZE, 0)
    assert repository.list_datasets() == []


def test_another_store_is_refused(
    repository: SqlRepository, database_url: str, store: FolderStore, tmp_path: Path
) -> None:
    sha256 = hand_in(repository, store, tmp_path, "a")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="none of the 1 data sets"):
        remove_old_datasets(database_url, open_store(str(tmp_path / "other")), soon())
    assert [record.id for record in repository.list_datasets()] == [sha256]
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises((InputError, DataStoreUnavailableError)):
        remove_old_datasets(database_url, store, soon())
    assert [record.id for record in repository.list_datasets()] == [sha256]


def test_content_that_went_while_it_was_handed_in_again_is_stored_again(
    repository: SqlRepository, database_url: str, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = DatasetShelf(repository, store)
    said = [Conversation("a", None, (Turn("what?", "this"),))]
    first = shelf.add_conversations(said, name="first", added_by="somebody")
    add = SqlRepository.add_dataset

    def late(self: SqlRepository, record: DatasetRecord) -> DatasetRecord:
        assert remove_old_datasets(database_url, store, soon()).count == 1
        return add(self, record)

    monkeypatch.setattr(SqlRepository, "add_dataset", late)
    again = shelf.add_conversations(said, name="again", added_by="somebody")
    assert (again.id, again.name) == (first.id, "again")
    assert check_database(database_url, store).findings == ()
