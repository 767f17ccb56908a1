"""Plans: equal requests, even racing ones, get the same plan."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from pruning.errors import ConflictError, NotFoundError
from pruning.planning.plan_parts import PlanModel
from storage.records import PlanRecord
from storage.sql_repository import SqlRepository
from tests.storage.examples import MORNING, plan


def test_plan_round_trips_to_the_byte(filled: SqlRepository) -> None:
    record = PlanRecord("request", plan())
    assert filled.add_plan(record) == record
    assert filled.get_plan("plan-1") == record
    found = filled.find_plan("request")
    assert found == record
    assert found is not None
    assert found.plan.to_json() == plan().to_json()


def test_unknown_plan(filled: SqlRepository) -> None:
    assert filled.find_plan("request") is None
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.get_plan("missing")


def test_taken_request_key_returns_the_stored_plan(filled: SqlRepository) -> None:
    first = filled.add_plan(PlanRecord("request", plan("first")))
    assert filled.add_plan(PlanRecord("request", plan("second"))) == first
    with pytest.raises(NotFoundError):
        filled.get_plan("second")


def test_two_requests_may_share_a_plan(filled: SqlRepository) -> None:
    first = filled.add_plan(PlanRecord("one", plan()))
    second = filled.add_plan(PlanRecord("two", plan(created_at=MORNING + timedelta(hours=1))))
    assert second == PlanRecord("two", plan())  # the stored plan, with its time
    assert filled.get_plan("plan-1") == first
    assert filled.find_plan("two") == second


def test_other_content_under_a_taken_plan_id_is_a_conflict(filled: SqlRepository) -> None:
    filled.add_plan(PlanRecord("one", plan()))
    with pytest.raises(ConflictError, match="plan-1"):
        filled.add_plan(PlanRecord("two", plan(method="uniform")))
    assert filled.find_plan("two") is None
    assert filled.get_plan("plan-1").plan.method == "predictor"


def test_plan_of_an_unknown_model(filled: SqlRepository) -> None:
    foreign = plan().model_copy(update={"model": PlanModel(id="missing", fingerprint="f" * 64)})
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.add_plan(PlanRecord("request", foreign))


def test_racing_requests_get_one_plan_and_leave_no_other(filled: SqlRepository) -> None:
    barrier = threading.Barrier(6)

    def request(thread: int) -> list[str]:
        answers = []
        for round_number in range(8):
            barrier.wait()
            record = PlanRecord(f"request-{round_number}", plan(f"plan-{round_number}-{thread}"))
            answers.append(filled.add_plan(record).plan.plan_id)
        return answers

    with ThreadPoolExecutor(6) as pool:
        per_thread = list(pool.map(request, range(6)))
    assert all(answers == per_thread[0] for answers in per_thread)
    with filled._engine.connect() as connection:
        stored = set(connection.execute(text("SELECT id FROM plans")).scalars())
    assert stored == set(per_thread[0])
