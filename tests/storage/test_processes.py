"""Several processes on one database, and one that is killed in the middle of its work."""

import time
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import migration
from storage.database import create_database_engine, lock_out_migrations
from storage.sql_repository import SqlRepository, open_repository
from storage.sqlite import create_file
from storage.url import parse_url
from tests.storage.examples import job, model, sample, store_basics
from tests.storage.workers import WorkerProcess


def test_processes_create_one_database_together(workers: list[WorkerProcess], empty_url: str) -> None:
    for worker, command in zip(workers, ("create", "upgrade"), strict=True):
        worker.send(command, empty_url)
    assert [worker.receive() for worker in workers] == [0, migration.REVISIONS[-1]]
    with open_repository(empty_url, create=True) as repository:
        store_basics(repository)
        assert repository.list_models() == [model()]


def test_second_migration_waits_for_the_first(workers: list[WorkerProcess], empty_url: str, backend: str) -> None:
    url = parse_url(empty_url)
    if backend == "sqlite":
        create_file(Path(url.database or ""))
    engine = create_database_engine(url, foreign_keys=False)
    with engine.execution_options(write=True).begin() as connection:
        lock_out_migrations(connection)
        migration.run_migrations(connection)
        workers[0].send("upgrade", empty_url)
        if backend == "postgresql":
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as observer:
                while observer.execute(text(waiting)).scalar() != 1:
                    time.sleep(0.02)
    assert workers[0].receive() == migration.REVISIONS[-1]
    engine.dispose()


def test_processes_with_overlapping_samples_lose_and_double_none(
    workers: list[WorkerProcess], filled: SqlRepository, database_url: str
) -> None:
    numbers = list(range(1, 241))
    for index, worker in enumerate(workers):
        order = numbers[::-1] if index % 2 else numbers
        batches = [order[start : start + 8] for start in range(0, len(order), 8)]
        worker.send("write_samples", database_url, batches=batches)
    mine = sum(filled.add_samples([sample(number) for number in numbers[start::40]]) for start in range(40))
    assert mine + sum(worker.receive() for worker in workers) == len(numbers)
    stored = filled.list_samples("m")
    assert sorted(stored, key=lambda s: s.metrics.kl) == [sample(number) for number in numbers]


def test_processes_claim_every_job_once(workers: list[WorkerProcess], filled: SqlRepository, database_url: str) -> None:
    queued = [filled.add_job(job(number))[0].id for number in range(30)]
    for index, worker in enumerate(workers):
        worker.send("claim_all", database_url, worker=f"worker-{index}")
    claims = {f"worker-{index}": worker.receive() for index, worker in enumerate(workers)}
    assert sorted(job_id for claimed in claims.values() for job_id in claimed) == sorted(queued)
    assert {found.id: found.worker for found in filled.list_jobs()} == {
        job_id: name for name, claimed in claims.items() for job_id in claimed
    }


def test_processes_with_equal_requests_get_one_plan(
    workers: list[WorkerProcess], filled: SqlRepository, database_url: str
) -> None:
    keys = [f"request-{number}" for number in range(20)]
    for index, worker in enumerate(workers):
        worker.send("add_plans", database_url, worker=f"worker-{index}", request_keys=keys)
    answers = [worker.receive() for worker in workers]
    assert answers[0] == answers[1]
    found = [filled.find_plan(key) for key in keys]
    assert [record and record.plan.plan_id for record in found] == answers[0]


def test_committed_samples_survive_a_killed_writer(filled: SqlRepository, database_url: str, backend: str) -> None:
    with WorkerProcess() as victim:
        victim.send("write_for_ever", database_url, batch_size=50)
        acknowledged = sum(victim.receive() == 50 for _ in range(3))
        acknowledged += victim.kill()
    with open_repository(database_url) as reopened:
        stored = reopened.list_samples("m")
        # The batch in flight is there completely or not at all.
        assert len(stored) in {50 * acknowledged, 50 * (acknowledged + 1)}
        assert stored == [sample(number) for number in range(1, len(stored) + 1)]
        assert reopened.add_samples([sample(len(stored)), sample(len(stored) + 1)]) == 1
        if backend == "sqlite":
            with reopened._engine.connect() as connection:
                assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]


def test_forked_connections_are_not_shared(filled: SqlRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled._engine.connect() as connection:
        before = connection.connection.dbapi_connection
        assert before is not None
    monkeypatch.setattr("os.getpid", lambda: -1)  # what a forked child sees: pooled connections, another process id
    with filled._engine.connect() as connection:
        assert connection.connection.dbapi_connection is not before
        assert connection.execute(text("SELECT count(*) FROM models")).scalar() == 1
    before.close()  # the parent's own business
