"""Removing old plans, over both kinds of database."""

import threading
from datetime import timedelta

import pytest

from pruning.errors import NotFoundError
from storage.integrity import check_database
from storage.old_plans import OldPlans, old_plans, remove_old_plans
from storage.records import JobStatus, NewJob, PlanRecord
from storage.sql_repository import SqlRepository
from tests.storage.examples import MORNING, plan, store_basics

HOUR = timedelta(hours=1)
NOON = MORNING + timedelta(hours=4)


def fill(repository: SqlRepository) -> None:
    store_basics(repository)
    for number in range(7):
        repository.add_plan(PlanRecord(f"asked {number}", plan(f"plan-{number}")))
    repository.add_plan(PlanRecord("asked again", plan("plan-0")))
    repository.add_plan(PlanRecord("asked later", plan("late", created_at=NOON)))


def test_what_is_older_goes_with_its_requests(
    repository: SqlRepository, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.old_plans._AT_ONCE", 3)
    fill(repository)
    assert old_plans(database_url, MORNING) == OldPlans({}, 0)  # made at that very moment
    assert old_plans(database_url, NOON) == OldPlans({"m": 7}, 0)
    assert repository.find_plan("asked again") is not None  # nothing was removed
    assert remove_old_plans(database_url, NOON) == OldPlans({"m": 7}, 0)
    for request in ("asked 0", "asked 6", "asked again"):
        assert repository.find_plan(request) is None
    with pytest.raises(NotFoundError):
        repository.get_plan("plan-0")
    assert repository.get_plan("late").request_key == "asked later"
    assert remove_old_plans(database_url, NOON) == OldPlans({}, 0)
    assert check_database(database_url).findings == ()


def test_a_plan_that_was_removed_can_be_stored_again(repository: SqlRepository, database_url: str) -> None:
    fill(repository)
    remove_old_plans(database_url, NOON)
    record = PlanRecord("asked 1", plan("plan-1", created_at=NOON))
    assert repository.add_plan(record) == record
    assert repository.get_plan("plan-1") == record


def test_a_plan_that_a_job_needs_or_may_need_again_stays(repository: SqlRepository, database_url: str) -> None:
    fill(repository)
    job, _ = repository.add_job(NewJob("apply", "m", {"kind": "apply", "plan": "plan-3"}, "somebody", "once"))
    assert old_plans(database_url, NOON) == OldPlans({"m": 6}, 1)
    assert remove_old_plans(database_url, NOON) == OldPlans({"m": 6}, 1)
    assert repository.get_plan("plan-3").plan.plan_id == "plan-3"
    repository.cancel_job(job.id, stale_after=HOUR)
    assert remove_old_plans(database_url, NOON) == OldPlans({}, 1)
    assert repository.retry_job(job.id).status is JobStatus.QUEUED
    claimed = repository.claim_job("w", stale_after=HOUR)
    assert claimed is not None
    repository.finish_job(job.id, "w", result={})
    assert remove_old_plans(database_url, NOON) == OldPlans({"m": 1}, 0)


def test_plans_are_asked_for_meanwhile(
    repository: SqlRepository, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stores a plan while it is removed ends with the plan, whole."""
    monkeypatch.setattr("storage.old_plans._AT_ONCE", 1)
    fill(repository)
    failures: list[Exception] = []

    def ask(worker: int) -> None:
        for number in (0, 3, 6) * 8:
            record = PlanRecord(f"worker {worker} asked {number}", plan(f"plan-{number}", created_at=NOON))
            try:
                assert repository.add_plan(record).plan.plan_id == record.plan.plan_id
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    workers = [threading.Thread(target=ask, args=(worker,)) for worker in range(3)]
    for thread in workers:
        thread.start()
    for _ in range(6):
        remove_old_plans(database_url, NOON)
    for thread in workers:
        thread.join()
    assert failures == []
    assert check_database(database_url).findings == ()
