"""Opening a database, and what is said when it cannot be opened or goes away."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pruning.anatomy.architecture import DENSE
from pruning.errors import InputError, SchemaRevisionError, StorageUnavailableError
from storage.contract import Repository
from storage.records import PlanRecord
from storage.sql_repository import SqlRepository, open_repository
from storage.tables import Base
from tests.postgres import PostgresServer
from tests.storage.examples import (
    MORNING,
    RANKING_SHA256,
    SAFETENSORS,
    calibration,
    dataset,
    device,
    job,
    key,
    model,
    plan,
    predictor,
    sample,
    statistics,
    store_basics,
)

CALLS: dict[str, Callable[[Repository], Any]] = {
    "put_artifact": lambda r: r.put_artifact(b"x", SAFETENSORS),
    "get_artifact": lambda r: r.get_artifact(RANKING_SHA256),
    "add_model": lambda r: r.add_model(model()),
    "get_model": lambda r: r.get_model("m"),
    "registered_at": lambda r: r.registered_at("m"),
    "list_models": lambda r: r.list_models(),
    "add_calibration": lambda r: r.add_calibration(calibration()),
    "get_calibration": lambda r: r.get_calibration("c"),
    "add_statistics": lambda r: r.add_statistics(statistics()),
    "list_statistics": lambda r: r.list_statistics("m"),
    "latest_statistics": lambda r: r.latest_statistics("m", "activations"),
    "add_samples": lambda r: r.add_samples([sample(1)]),
    "find_samples": lambda r: r.find_samples("m", RANKING_SHA256, "c", [DENSE]),
    "list_samples": lambda r: r.list_samples("m"),
    "is_scored_by_kl": lambda r: r.is_scored_by_kl("m", RANKING_SHA256, "c"),
    "count_samples": lambda r: r.count_samples("m"),
    "add_predictor": lambda r: r.add_predictor(predictor()),
    "get_predictor": lambda r: r.get_predictor("p"),
    "latest_predictor": lambda r: r.latest_predictor("m"),
    "latest_predictor_id": lambda r: r.latest_predictor_id("m"),
    "list_predictor_spaces": lambda r: r.list_predictor_spaces("m"),
    "list_predictors": lambda r: r.list_predictors(),
    "add_device": lambda r: r.add_device(device()),
    "get_device": lambda r: r.get_device("bench"),
    "latest_device_number": lambda r: r.latest_device_number("bench"),
    "list_devices": lambda r: r.list_devices(),
    "list_device_ids": lambda r: r.list_device_ids(),
    "add_plan": lambda r: r.add_plan(PlanRecord("request", plan())),
    "get_plan": lambda r: r.get_plan("plan-1"),
    "find_plan": lambda r: r.find_plan("request"),
    "record_search": lambda r: r.record_search("m", {}, {}),
    "list_searches": lambda r: r.list_searches(),
    "list_search_ids": lambda r: r.list_search_ids("m"),
    "add_job": lambda r: r.add_job(job()),
    "get_job": lambda r: r.get_job("j"),
    "list_jobs": lambda r: r.list_jobs(),
    "job_counts": lambda r: r.job_counts(),
    "count_jobs": lambda r: r.count_jobs(),
    "claim_job": lambda r: r.claim_job("w", stale_after=timedelta(0)),
    "heartbeat_job": lambda r: r.heartbeat_job("j", "w"),
    "job_signal": lambda r: r.job_signal("j", "w"),
    "report_job": lambda r: r.report_job("j", "w"),
    "finish_job": lambda r: r.finish_job("j", "w"),
    "release_job": lambda r: r.release_job("j", "w"),
    "cancel_job": lambda r: r.cancel_job("j", stale_after=timedelta(0)),
    "retry_job": lambda r: r.retry_job("j"),
    "best_over_steps": lambda r: r.best_over_steps("j", parts=10),
    "list_job_events": lambda r: r.list_job_events("j"),
    "last_job_log": lambda r: r.last_job_log("j", 1),
    "add_dataset": lambda r: r.add_dataset(dataset()),
    "get_dataset": lambda r: r.get_dataset("d"),
    "list_datasets": lambda r: r.list_datasets(),
    "add_key": lambda r: r.add_key(key()),
    "find_key": lambda r: r.find_key("k"),
    "list_keys": lambda r: r.list_keys(),
    "has_keys": lambda r: r.has_keys(),
    "revoke_key": lambda r: r.revoke_key("k"),
    "note_key_use": lambda r: r.note_key_use("k", MORNING),
    "check": lambda r: r.check(),
    "check_writable": lambda r: r.check_writable(),
    "commit_mark": lambda r: r.commit_mark(),
    "commit_mark_on_loop": lambda r: asyncio.run(r.commit_mark_on_loop()),
}


def test_calls_cover_the_contract() -> None:
    assert set(CALLS) == {name for name in dir(Repository) if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_method_of_the_contract_is_implemented(name: str) -> None:
    owner = next(part for part in SqlRepository.__mro__ if name in vars(part))
    assert owner.__module__ != Repository.__module__  # a protocol's own method would answer None


def test_new_database_is_created_and_kept(empty_url: str) -> None:
    with open_repository(empty_url, create=True) as repository:
        repository.check()
        store_basics(repository)
    for create in (False, True):
        with open_repository(empty_url, create=create) as repository:
            assert repository.list_models() == [model()]


def test_empty_database_is_not_filled_without_create(empty_url: str) -> None:
    # SQLite: no file; PostgreSQL: no tables. Both say how to make them.
    with pytest.raises((StorageUnavailableError, SchemaRevisionError), match=r"lop db upgrade --database \S+"):
        open_repository(empty_url)
    assert not Path(empty_url.removeprefix("sqlite:///")).exists()


def test_sqlite_file_without_schema(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.touch()
    with pytest.raises(SchemaRevisionError, match=f"found revision none.*upgrade --database sqlite:///{path}"):
        open_repository(f"sqlite:///{path}")
    open_repository(f"sqlite:///{path}", create=True).close()


def test_sqlite_is_set_up_for_several_processes(tmp_path: Path) -> None:
    names = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
    with (
        open_repository(f"sqlite:///{tmp_path}/store.db", create=True) as repository,
        repository._engine.connect() as connection,
    ):
        pragmas = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in names}
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1, "busy_timeout": 30_000}


def test_odd_sqlite_paths(tmp_path: Path) -> None:
    path = tmp_path / "50% of a & b#ü.db"
    open_repository(f"sqlite:///{path}", create=True).close()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("create", [False, True])
def test_missing_folder(tmp_path: Path, create: bool) -> None:
    with pytest.raises(StorageUnavailableError, match=f"folder.*must exist.*mkdir -p {tmp_path}/absent"):
        open_repository(f"sqlite:///{tmp_path}/absent/store.db", create=create)


@pytest.mark.parametrize("create", [False, True])
def test_folder_instead_of_a_file(tmp_path: Path, create: bool) -> None:
    with pytest.raises(StorageUnavailableError, match="must be a file"):
        open_repository(f"sqlite:///{tmp_path}", create=create)


@pytest.mark.parametrize("create", [False, True])
def test_file_that_is_no_database_stays_as_it_is(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"shopping list " * 500)
    with pytest.raises(StorageUnavailableError, match=r"must be a SQLite database.*notes.txt.*left as it is"):
        open_repository(f"sqlite:///{path}", create=create)
    assert path.read_bytes() == b"shopping list " * 500


def test_database_of_another_program_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaRevisionError):
        open_repository(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(StorageUnavailableError, match=r"server must answer.*me:.*@127.0.0.1:1/lop") as caught:
        open_repository("postgresql://me:hunter2@127.0.0.1:1/lop")
    assert "hunter2" not in str(caught.value)


def test_wrong_password(postgres_server: PostgresServer, postgres_url: str) -> None:
    with postgres_server.password_required("locked_out", "right"):
        open_repository(postgres_server.url_as(postgres_url, "locked_out", "right")).close()
        with pytest.raises(StorageUnavailableError, match=r"password authentication failed.*Check") as caught:
            open_repository(postgres_server.url_as(postgres_url, "locked_out", "wr0ng"))
    assert "wr0ng" not in str(caught.value)


def test_missing_postgresql_database(postgres_server: PostgresServer) -> None:
    with pytest.raises(StorageUnavailableError, match='database "absent" does not exist'):
        open_repository(postgres_server.url("absent"))


def test_unknown_scheme() -> None:
    with pytest.raises(InputError, match="must be SQLite or PostgreSQL"):
        open_repository("mysql://localhost/lop")


@pytest.fixture
def doomed(disposable_url: str) -> Iterator[SqlRepository]:
    with open_repository(disposable_url) as repository:
        store_basics(repository)
        yield repository


def expect_from_every_method(repository: SqlRepository, error: type[Exception]) -> None:
    for name, call in CALLS.items():
        if name.startswith(
            "commit_mark"
        ):  # a database that does not say is no error: tests/storage/test_commit_marks.py
            continue
        with pytest.raises(error):
            pytest.fail(f"{name} returned {call(repository)!r}")


def test_vanished_database_is_reported_by_every_method(
    doomed: SqlRepository, disposable_url: str, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "sqlite":
        for path in Path(disposable_url.removeprefix("sqlite:///")).parent.glob("store.db*"):
            path.unlink()
    else:
        request.getfixturevalue("postgres_server").drop_database(doomed._engine.url.database)
    expect_from_every_method(doomed, StorageUnavailableError)


def test_database_that_comes_back_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_repository(f"sqlite:///{path}", create=True) as repository:
        store_basics(repository)
        repository.close()  # everything is in the one file
        path.rename(tmp_path / "away.db")
        with pytest.raises(StorageUnavailableError, match="file must exist"):
            repository.list_models()
        (tmp_path / "away.db").rename(path)
        assert repository.list_models() == [model()]


def test_restarted_server_is_not_noticed(disposable_postgres_url: str) -> None:
    with open_repository(disposable_postgres_url) as repository, open_repository(disposable_postgres_url) as other:
        store_basics(repository)
        with other._engine.connect() as connection:
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            others = "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            assert connection.execute(text(f"{end} {others}")).scalars().all() == [True]
        assert repository.list_models() == [model()]


def test_server_that_goes_away_inside_a_transaction(doomed: SqlRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = doomed._insert_new

    def cut_then_insert(session: Any, table: Any, rows: Any) -> int:
        session.connection().connection.dbapi_connection.close()
        return insert(session, table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(doomed, "_insert_new", cut_then_insert)
        with pytest.raises(StorageUnavailableError):
            doomed.add_samples([sample(1)])
    assert doomed.add_samples([sample(1)]) == 1


def test_changed_schema_is_reported_by_every_method(doomed: SqlRepository) -> None:
    with doomed._engine.execution_options(write=True).begin() as connection:
        Base.metadata.drop_all(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    expect_from_every_method(doomed, SchemaRevisionError)
