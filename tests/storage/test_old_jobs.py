"""Removing jobs that ended long ago, over both kinds of database."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pruning.errors import ConflictError, NotFoundError
from storage.integrity import check_database
from storage.old_jobs import old_jobs, remove_old_jobs
from storage.records import JobProgress, JobStatus, NewJob
from storage.sql_repository import SqlRepository

HOUR = timedelta(hours=1)


def soon() -> datetime:
    return datetime.now(UTC) + HOUR


def add(repository: SqlRepository, key: str | None = None) -> str:
    return repository.add_job(NewJob("search", "m", {"sparsities": [0.5]}, "somebody", key))[0].id


def end(repository: SqlRepository, how: JobStatus) -> str:
    """A job with events that ended so."""
    job = add(repository)
    claimed = repository.claim_job("w", stale_after=HOUR)
    assert claimed is not None
    assert claimed.id == job
    repository.report_job(job, "w", progress=JobProgress(1, 2, "search", 0.1, 3.0, None), as_event=True, log=["a line"])
    outcome: dict[JobStatus, dict[str, Any]] = {
        JobStatus.DONE: {"result": {}},
        JobStatus.FAILED: {"error": "why"},
        JobStatus.CANCELLED: {"cancelled": True},
    }
    repository.finish_job(job, "w", **outcome[how])
    return job


def test_what_ended_goes_with_its_events_and_what_waits_or_runs_stays(
    repository: SqlRepository, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.old_jobs._AT_ONCE", 2)
    ended = [end(repository, how) for how in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.DONE)]
    running = add(repository)
    assert repository.claim_job("w", stale_after=HOUR) is not None
    queued = add(repository)
    assert old_jobs(database_url, datetime.now(UTC) - HOUR) == {}
    expected = {"cancelled": 1, "done": 2, "failed": 1}
    assert old_jobs(database_url, soon()) == expected
    assert [repository.get_job(job).id for job in ended] == ended  # nothing was removed
    assert remove_old_jobs(database_url, soon()) == expected
    for job in ended:
        with pytest.raises(NotFoundError):
            repository.get_job(job)
        assert repository.list_job_events(job) == []
    assert repository.get_job(running).status is JobStatus.RUNNING
    assert repository.list_job_events(running) != []
    assert repository.get_job(queued).status is JobStatus.QUEUED
    assert remove_old_jobs(database_url, soon()) == {}
    assert check_database(database_url).findings == ()


def test_its_idempotency_key_makes_a_new_job(repository: SqlRepository, database_url: str) -> None:
    first = add(repository, "once")
    assert add(repository, "once") == first
    repository.cancel_job(first, stale_after=HOUR)
    assert remove_old_jobs(database_url, soon()) == {"cancelled": 1}
    assert add(repository, "once") != first


def test_a_job_is_retried_or_removed_and_never_half(
    repository: SqlRepository, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.old_jobs._AT_ONCE", 1)
    jobs = [end(repository, JobStatus.FAILED) for _ in range(12)]
    outcomes: dict[str, str] = {}
    failures: list[Exception] = []

    def retry() -> None:
        for job in reversed(jobs):
            try:
                repository.retry_job(job)
                outcomes[job] = "retried"
            except (NotFoundError, ConflictError):
                outcomes[job] = "removed"
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    thread = threading.Thread(target=retry)
    thread.start()
    removed = sum(remove_old_jobs(database_url, soon()).values())
    thread.join()
    assert failures == []
    assert removed == sum(outcome == "removed" for outcome in outcomes.values())
    for job, outcome in outcomes.items():
        if outcome == "retried":
            assert repository.get_job(job).status is JobStatus.QUEUED
            assert repository.list_job_events(job) != []
    assert check_database(database_url).findings == ()
