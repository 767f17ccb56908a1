"""Copies of a database, whether it is whole, and removing a model; over both kinds of database."""

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from pruning.errors import ConflictError, NotFoundError, SchemaRevisionError, StorageUnavailableError
from storage.backup import backup, restore
from storage.data_store import FolderStore
from storage.integrity import check_database
from storage.records import JobProgress, JobStatus, NewJob, PlanRecord
from storage.sql_repository import SqlRepository, open_repository
from tests.storage.examples import (
    RANKING,
    RANKING_SHA256,
    SAFETENSORS,
    calibration,
    dataset,
    device,
    key,
    model,
    plan,
    predictor,
    sample,
    statistics,
    store_basics,
)

HOUR = timedelta(hours=1)


def fill(repository: SqlRepository) -> None:
    """A row in every table."""
    store_basics(repository)
    sha256 = repository.put_artifact(b"statistics of it", SAFETENSORS)
    repository.add_statistics(replace(statistics(), sha256=sha256))
    repository.add_samples([sample(0)])
    repository.add_predictor(predictor())
    repository.add_plan(PlanRecord("asked", plan()))
    repository.add_device(device())
    repository.add_dataset(dataset())
    repository.add_key(key())
    repository.record_search("m", {"seed": 1}, {"found": 1})
    job, _ = repository.add_job(NewJob("train", "m", {"kind": "train"}, "somebody", "once"))
    repository.claim_job("w", stale_after=HOUR)
    repository.report_job(job.id, "w", progress=JobProgress(1, 2, "half", 0.5), as_event=True, log=["a line"])


def contents(repository: SqlRepository) -> list[object]:
    """What there is, as values."""
    [job] = repository.list_jobs()
    return [
        repository.get_artifact(RANKING_SHA256),
        repository.list_models(),
        repository.list_statistics("m"),
        repository.list_samples("m"),
        repository.list_predictors(),
        repository.find_plan("asked"),
        repository.list_devices(),
        repository.list_datasets(),
        repository.list_keys(),
        repository.list_searches(),
        job,
        repository.list_job_events(job.id),
    ]


@pytest.fixture
def filled(repository: SqlRepository) -> SqlRepository:
    fill(repository)
    return repository


def test_a_backup_is_all_of_it_and_comes_back(
    filled: SqlRepository, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "copies" / "backup.db"
    file.parent.mkdir()
    rows = backup(database_url, file)
    assert all(number >= 1 for number in rows.values()), rows
    assert rows["job_events"] == 4
    assert [path.name for path in file.parent.iterdir()] == ["backup.db"]
    before = contents(filled)
    filled.add_job(NewJob("search", "m", {"kind": "search"}, "somebody"))  # after the copy, and not in it
    assert restore(file, empty_url) == rows
    with open_repository(empty_url) as restored:
        assert contents(restored) == before
        # Rows that are numbered get numbers after those that were restored.
        job, _ = restored.add_job(NewJob("train", "m", {"kind": "train"}, "somebody"))
        assert restored.list_jobs()[0].id == job.id
        assert restored.add_samples([replace(sample(0), protocol="")]) == 0
        restored.record_search("m", {"seed": 2}, {"found": 2})
    assert check_database(empty_url).findings == ()


def test_jobs_are_counted(filled: SqlRepository) -> None:
    filled.add_job(NewJob("train", "m", {"kind": "train"}, "somebody"))
    assert filled.job_counts() == {("train", "running"): 1, ("train", "queued"): 1}


def test_nothing_is_overwritten(filled: SqlRepository, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    backup(database_url, file)
    content = file.read_bytes()
    with pytest.raises(ConflictError, match="new file"):
        backup(database_url, file)
    with pytest.raises(ConflictError, match=r"without rows.*models"):
        restore(file, database_url)
    assert file.read_bytes() == content


def test_what_is_no_backup(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match="must exist"):
        restore(tmp_path / "none.db", database_url)
    (tmp_path / "text.db").write_text("no database at all, and long enough to be one" * 100)
    with pytest.raises(StorageUnavailableError, match="SQLite"):
        restore(tmp_path / "text.db", database_url)
    backup(database_url, tmp_path / "old.db")
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    with pytest.raises(SchemaRevisionError, match="lop db upgrade"):
        restore(tmp_path / "old.db", database_url)


def test_a_backup_sees_one_moment_while_others_write(
    repository: SqlRepository, database_url: str, tmp_path: Path
) -> None:
    store_basics(repository)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            job, _ = repository.add_job(NewJob("train", f"m{number}", {"kind": "train"}, "somebody"))
            repository.cancel_job(job.id, stale_after=HOUR)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(2):
            rows = backup(database_url, tmp_path / f"{number}.db")
            assert rows["job_events"] in (2 * rows["jobs"], 2 * rows["jobs"] - 1)
            assert check_database(f"sqlite:///{tmp_path / f'{number}.db'}").findings == ()
    finally:
        stop.set()
        thread.join()


def test_what_is_whole_and_what_is_not(filled: SqlRepository, database_url: str, tmp_path: Path) -> None:
    report = check_database(database_url)
    assert report.findings == ()
    assert report.rows["models"] == 1
    [missing] = check_database(database_url, FolderStore(tmp_path / "store")).findings
    assert (missing.what, missing.key) == ("data set", dataset().id)


def test_damage_is_found(filled: SqlRepository, database_url: str, tmp_path: Path) -> None:
    backup(database_url, tmp_path / "damaged.db")
    with sqlite3.connect(tmp_path / "damaged.db") as connection:
        connection.execute("UPDATE artifacts SET content = x'00' WHERE sha256 = ?", (RANKING_SHA256,))
        connection.execute("UPDATE plans SET document = json_set(document, '$.schema_version', 9)")
        connection.execute("UPDATE models SET anatomy = '{}'")
        connection.execute("DELETE FROM job_events WHERE number = 2")
        connection.execute("DELETE FROM calibrations")
    connection.close()
    found = {finding.what for finding in check_database(f"sqlite:///{tmp_path}/damaged.db").findings}
    assert found == {"artifact", "plan", "model", "job", "statistics", "samples"}


def test_a_model_goes_with_all_that_is_known_of_it(filled: SqlRepository, database_url: str) -> None:
    filled.put_artifact(b"of nobody", SAFETENSORS)
    other = replace(model(), id="other")
    filled.add_model(other)  # it has the same ranking, which stays
    [job] = filled.list_jobs()
    with pytest.raises(ConflictError, match="lop job cancel"):
        filled.remove_model("m")
    assert filled.get_model("m")
    filled.finish_job(job.id, "w", result={})
    shown = filled.plan_removal("m")
    assert shown.rows == {"statistics": 1, "samples": 1, "predictors": 1, "searches": 1, "plans": 1, "artifacts": 2}
    assert shown.artifact_bytes == len(b"statistics of it") + len(b"predictor weights")
    assert filled.get_model("m")
    assert filled.remove_model("m") == shown
    for look in (
        lambda: filled.get_model("m"),
        lambda: filled.plan_removal("m"),
        lambda: filled.remove_model("m"),
    ):
        with pytest.raises(NotFoundError, match="no model"):
            look()
    assert filled.find_plan("asked") is None
    assert filled.list_samples("m") == []
    assert [x.id for x in filled.list_models()] == ["other"]
    assert filled.get_artifact(RANKING_SHA256)
    assert filled.get_job(job.id).status is JobStatus.DONE
    assert filled.get_calibration(calibration().id)
    assert check_database(database_url).findings == ()
    assert filled.remove_model("other").rows["artifacts"] == 1
    with pytest.raises(NotFoundError):
        filled.get_artifact(RANKING_SHA256)


def test_who_writes_while_the_model_is_being_removed_finds_none(filled: SqlRepository, database_url: str) -> None:
    """To remove a model with many samples takes a while, in which plans are asked for: none may break a constraint."""
    [job] = filled.list_jobs()
    filled.finish_job(job.id, "w", result={})
    writers: dict[str, Callable[[], object]] = {
        "plan": lambda: filled.add_plan(PlanRecord("asked meanwhile", plan("another"))),
        "predictor": lambda: filled.add_predictor(replace(predictor(), id="another")),
        "samples": lambda: filled.add_samples([sample(1)]),
        "statistics": lambda: filled.add_statistics(statistics()),
        "search": lambda: filled.record_search("m", {"seed": 2}, {"found": 1}),
    }
    found: dict[str, object] = {}

    def write(name: str) -> None:
        try:
            found[name] = writers[name]()
        except Exception as error:  # noqa: BLE001 (which it is, is what is asked)
            found[name] = type(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in writers]
    removed = threading.Event()

    @event.listens_for(filled._write_engine, "before_cursor_execute")
    def begin_to_write(*cursor: Any) -> None:
        if cursor[2].startswith("DELETE FROM models") and not removed.is_set():
            removed.set()
            for thread in threads:
                thread.start()
            time.sleep(0.5)  # they wait for the removal, at whatever they wait for

    filled.remove_model("m")
    for thread in threads:
        thread.join(60)
    assert removed.is_set()
    assert found == dict.fromkeys(writers, NotFoundError)
    assert check_database(database_url).findings == ()


def test_another_model_may_have_the_id_then(filled: SqlRepository) -> None:
    """Samples are read by the anatomy of the model that they are of, not of the one that had its id before."""
    [job] = filled.list_jobs()
    filled.finish_job(job.id, "w", result={})
    assert filled.registered_at("m") == model().created_at
    filled.remove_model("m")
    assert filled.registered_at("m") is None
    later = model().created_at + timedelta(days=1)
    wider = replace(model().anatomy, fingerprint="9" * 64, total_parameters=20_000)
    filled.put_artifact(RANKING, SAFETENSORS)
    filled.add_model(replace(model(), anatomy=wider, created_at=later))
    assert filled.add_samples([sample(0)]) == 1
    assert filled._anatomies["m"] == (later, wider)
    assert filled.registered_at("m") == later
