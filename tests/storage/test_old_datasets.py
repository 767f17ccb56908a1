"""Removing data sets that no job needs any more, over both kinds of database."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pruning.data.conversations import Conversation, Turn
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
    created = facts.get("created_at", MORNING).timestamp()
    os.utime(folder / "store" / sha256[:2] / sha256, (created, created))
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
    expected = OldDatasets(2, 2 * SIZE, 4, 0)
    assert old_datasets(database_url, store, before) == expected
    assert len(repository.list_datasets()) == 7  # nothing was removed
    assert remove_old_datasets(database_url, store, before) == expected
    stayed = set(names) - {"free", "done"}
    assert {record.id for record in repository.list_datasets()} == {ids[name] for name in stayed}
    assert {name for name in names if store.has(ids[name])} == stayed
    assert remove_old_datasets(database_url, store, before) == OldDatasets(0, 0, 4, 0)
    assert check_database(database_url, store).findings == ()


def test_what_was_handed_in_again_is_young_again(
    repository: SqlRepository, database_url: str, store: FolderStore, tmp_path: Path
) -> None:
    first, second = (hand_in(repository, store, tmp_path, name) for name in ("a", "b"))
    store.put(tmp_path / "b")
    before = MORNING + HOUR
    assert remove_old_datasets(database_url, store, before) == OldDatasets(1, SIZE, 0, 0)
    assert [record.id for record in repository.list_datasets()] == [second]
    assert (store.has(first), store.has(second)) == (False, True)


def test_killed_in_between_its_record_can_be_removed(
    repository: SqlRepository, database_url: str, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hand_in(repository, store, tmp_path, "a")
    remove = FolderStore.remove

    def killed(self: FolderStore, name: str) -> None:
        remove(self, name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_old_datasets(database_url, store, soon())
    assert not store.has(sha256)
    assert remove_old_datasets(database_url, store, soon()) == OldDatasets(0, 0, 0, 1)
    assert [record.id for record in repository.list_datasets()] == [sha256]
    assert remove_old_datasets(database_url, store, soon(), absent=True) == OldDatasets(1, SIZE, 0, 0)
    assert repository.list_datasets() == []


def test_in_another_store_nothing_is_removed(
    repository: SqlRepository, database_url: str, store: FolderStore, tmp_path: Path
) -> None:
    sha256 = hand_in(repository, store, tmp_path, "a")
    (tmp_path / "other").mkdir()
    other = open_store(str(tmp_path / "other"))
    assert remove_old_datasets(database_url, other, soon()) == OldDatasets(0, 0, 0, 1)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(DataStoreUnavailableError):
        remove_old_datasets(database_url, store, soon(), absent=True)
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
