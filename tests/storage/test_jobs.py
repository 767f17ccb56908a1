"""Jobs: queued, claimed by exactly one worker, taken over from a lost one, ended by their owner only."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from pruning.errors import ConflictError, InputError, NotFoundError
from storage.records import JobEventKind, JobProgress, JobRecord, JobSignal, JobStatus, NewJob
from storage.sql_repository import SqlRepository
from storage.tables import JobRow
from tests.storage.examples import job

HOUR = timedelta(hours=1)
AT_ONCE = timedelta(0)
STATUSES = [*JobStatus]


def queue(repository: SqlRepository, number: int = 0, **values: Any) -> JobRecord:
    return repository.add_job(job(number, **values))[0]


def claim(repository: SqlRepository, worker: str = "w", stale_after: timedelta = HOUR, **options: Any) -> JobRecord:
    claimed = repository.claim_job(worker, stale_after=stale_after, **options)
    assert claimed is not None
    return claimed


def statuses(repository: SqlRepository, job_id: str) -> list[str]:
    events = repository.list_job_events(job_id)
    assert [event.number for event in events] == [*range(1, len(events) + 1)]
    return [event.document["status"] for event in events if event.kind is JobEventKind.STATUS]


def test_new_job_is_queued(filled: SqlRepository) -> None:
    before = datetime.now(UTC)
    stored, is_new = filled.add_job(NewJob("search", "m", {"widths": (8, 16)}, "somebody"))
    assert is_new
    assert stored.settings == {"widths": [8, 16]}
    assert (stored.kind, stored.model_id, stored.asked_by) == ("search", "m", "somebody")
    assert (stored.status, stored.attempts, stored.is_cancelling) == (JobStatus.QUEUED, 0, False)
    assert {stored.worker, stored.heartbeat_at, stored.progress, stored.result, stored.error} == {None}
    assert before <= stored.created_at <= datetime.now(UTC)
    assert filled.get_job(stored.id) == stored
    assert statuses(filled, stored.id) == ["queued"]


def test_a_job_needs_json_settings_and_no_model(filled: SqlRepository) -> None:
    with pytest.raises(InputError, match="settings of a job must be a JSON document"):
        filled.add_job(NewJob("search", "m", {"model": object()}, "somebody"))
    assert filled.list_jobs() == []
    assert queue(filled, model_id="to be registered").model_id == "to be registered"


def test_an_idempotency_key_stands_for_one_job_of_its_asker(filled: SqlRepository) -> None:
    first, is_new = filled.add_job(job(1, key="k"))
    assert is_new
    claim(filled)
    again, is_new = filled.add_job(job(1, key="k"))
    assert (again, is_new) == (filled.get_job(first.id), False)
    with pytest.raises(ConflictError, match="an idempotency key stands for one request"):
        filled.add_job(job(2, key="k"))
    other, is_new = filled.add_job(NewJob("search", "m", {}, "another", "k"))
    assert is_new
    assert other.id != first.id
    assert len({queue(filled, 1).id, queue(filled, 1).id}) == 2  # none of them has a key


def test_racing_requests_of_one_key_make_one_job(filled: SqlRepository) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: filled.add_job(job(1, key="k")), range(12)))
    assert len({stored.id for stored, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1
    assert filled.count_jobs() == 1


def test_unknown_job(filled: SqlRepository) -> None:
    assert filled.heartbeat_job("missing", "w") is JobSignal.LOST
    assert not filled.finish_job("missing", "w")
    assert not filled.release_job("missing", "w")
    assert filled.list_job_events("missing") == []
    for act in (
        filled.get_job,
        filled.retry_job,
        lambda job_id: filled.cancel_job(job_id, stale_after=HOUR),
    ):
        with pytest.raises(NotFoundError, match=r"'missing'.*lop job list"):
            act("missing")


def test_jobs_are_claimed_oldest_first_once_and_by_kind(filled: SqlRepository) -> None:
    queued = [queue(filled, number, kind=kind) for number, kind in enumerate(("search", "train", "search"))]
    assert filled.claim_job("c", stale_after=HOUR, kinds=["apply"]) is None
    claimed = [filled.claim_job(worker, stale_after=HOUR, kinds=["search"]) for worker in ("a", "b", "a")]
    assert [c and (c.id, c.worker, c.status) for c in claimed] == [
        (queued[0].id, "a", JobStatus.RUNNING),
        (queued[2].id, "b", JobStatus.RUNNING),
        None,
    ]
    assert claim(filled, "c").id == queued[1].id
    assert filled.claim_job("c", stale_after=HOUR) is None
    assert claimed[0] is not None
    assert claimed[0].heartbeat_at is not None
    assert claimed[0].attempts == 1
    assert filled.get_job(queued[0].id) == claimed[0]


def test_lists_are_newest_first_and_filtered(filled: SqlRepository) -> None:
    ids = [queue(filled, n, kind=kind, model_id=f"m{n % 2}").id for n, kind in enumerate(["search", "train"] * 3)]
    claim(filled)
    assert [j.id for j in filled.list_jobs()] == ids[::-1]
    assert [j.id for j in filled.list_jobs(limit=2, offset=1)] == ids[::-1][1:3]
    assert [j.id for j in filled.list_jobs(status=JobStatus.RUNNING)] == ids[:1]
    assert [j.id for j in filled.list_jobs(kind="train")] == [ids[5], ids[3], ids[1]]
    assert [j.id for j in filled.list_jobs(model_id="m0", status=JobStatus.QUEUED)] == [ids[4], ids[2]]
    assert (filled.count_jobs(), filled.count_jobs(kind="train"), filled.count_jobs(model_id="x")) == (6, 3, 0)


def test_job_of_a_lost_worker_is_taken_over(filled: SqlRepository) -> None:
    stored = queue(filled)
    claim(filled, "lost")
    assert filled.claim_job("next", stale_after=HOUR) is None
    taken = claim(filled, "next", AT_ONCE)
    assert (taken.id, taken.worker, taken.attempts) == (stored.id, "next", 2)
    assert filled.heartbeat_job(stored.id, "lost") is filled.job_signal(stored.id, "lost") is JobSignal.LOST
    assert filled.job_signal(stored.id, "next") is JobSignal.CONTINUE
    assert filled.report_job(stored.id, "lost", log=["I am still here"]) is JobSignal.LOST
    assert not filled.finish_job(stored.id, "lost", result={"from": "the lost one"})
    assert not filled.release_job(stored.id, "lost")
    assert filled.get_job(stored.id) == taken
    assert filled.heartbeat_job(stored.id, "next") is JobSignal.CONTINUE
    assert filled.last_job_log(stored.id, 5) == []
    assert statuses(filled, stored.id) == ["queued", "running", "running"]


def test_a_job_that_keeps_losing_its_worker_is_parked_and_can_be_queued_again(filled: SqlRepository) -> None:
    stored, other = queue(filled, 1), queue(filled, 2)
    for number in range(3):
        assert claim(filled, f"w{number}", AT_ONCE).id == stored.id
    assert claim(filled, "next", AT_ONCE).id == other.id
    parked = filled.get_job(stored.id)
    assert (parked.status, parked.attempts) == (JobStatus.PARKED, 3)
    assert parked.error is not None
    assert "3 workers were lost while they ran this job" in parked.error
    assert "w2" in parked.error
    assert parked.finished_at is not None
    again = filled.retry_job(stored.id)
    assert (again.status, again.attempts, again.error, again.finished_at) == (JobStatus.QUEUED, 0, None, None)
    assert statuses(filled, stored.id) == ["queued", "running", "running", "running", "parked", "queued"]


def test_a_job_that_is_given_back_was_never_claimed(filled: SqlRepository) -> None:
    stored = queue(filled)
    for _ in range(4):
        claim(filled)
        assert filled.release_job(stored.id, "w")
    assert filled.get_job(stored.id).attempts == 0
    assert claim(filled, "other").id == stored.id


def test_heartbeat_moves_forward_and_keeps_the_job(filled: SqlRepository) -> None:
    stored = queue(filled)
    claimed = claim(filled)
    assert claimed.heartbeat_at is not None
    assert filled.heartbeat_job(stored.id, "w") is JobSignal.CONTINUE
    beaten = filled.get_job(stored.id).heartbeat_at
    assert beaten is not None
    assert beaten > claimed.heartbeat_at
    assert filled.claim_job("thief", stale_after=HOUR) is None


def test_a_heartbeat_from_the_future_is_of_a_clock_that_was_set_back(filled: SqlRepository) -> None:
    stored = queue(filled)
    claim(filled, "lost")
    for ahead, found in ((HOUR / 2, None), (2 * HOUR, stored.id)):
        with filled._engine.begin() as connection:
            connection.execute(update(JobRow).values(heartbeat_at=datetime.now(UTC) + ahead))
        claimed = filled.claim_job("next", stale_after=HOUR)
        assert (claimed and claimed.id) == found


def test_progress_and_log_are_kept_and_told(filled: SqlRepository) -> None:
    stored = queue(filled)
    claim(filled)
    progress = JobProgress(3, 40, "sparsity 0.5", best=0.125, seconds_left=74.0)
    assert filled.report_job(stored.id, "w", progress=progress, as_event=True, log=["one", "two"])
    assert filled.get_job(stored.id).progress == progress
    later = JobProgress(4, 40, "sparsity 0.5")
    filled.report_job(stored.id, "w", progress=later)
    filled.report_job(stored.id, "w", log=["three"])
    assert filled.get_job(stored.id).progress == later
    assert filled.last_job_log(stored.id, 2) == ["two", "three"]
    events = filled.list_job_events(stored.id, after=2)
    assert [(event.number, event.kind.value) for event in events] == [
        (3, "log"),
        (4, "log"),
        (5, "progress"),
        (6, "log"),
    ]
    assert events[2].document == {"done": 3, "total": 40, "stage": "sparsity 0.5", "best": 0.125, "seconds_left": 74.0}
    assert filled.list_job_events(stored.id, after=2, limit=1) == events[:1]
    assert filled.list_job_events(stored.id, after=6) == []
    assert claim(filled, "next", AT_ONCE).progress is None


def told(repository: SqlRepository, job_id: str, stage: str, total: int, bests: dict[int, float | None]) -> None:
    for done, best in bests.items():
        repository.report_job(job_id, "w", progress=JobProgress(done, total, stage, best), as_event=True, log=["x"])


def test_the_best_over_the_steps_is_thinned_to_so_many_parts(filled: SqlRepository) -> None:
    stored, other = queue(filled), queue(filled, 1)
    claim(filled)
    claim(filled)
    told(filled, other.id, "another job", 4, {1: 9.0})
    told(filled, stored.id, "reading", 7, {1: None, 7: None})
    told(filled, stored.id, "b", 100, {n: 1 / n for n in range(1, 101)})
    told(filled, stored.id, "a", 4, {1: 0.5, 2: 0.5, 4: 0.25})
    told(filled, stored.id, "b", 100, {n: 1 / n for n in range(1, 30)})  # a second run tells the same
    told(filled, stored.id, "of nothing", 0, {0: 3.0})
    found = filled.best_over_steps(stored.id, parts=10)
    assert [(x.stage, x.done, x.best) for x in found] == [
        *(("b", n, 1 / n) for n in range(10, 101, 10)),
        ("a", 1, 0.5),
        ("a", 2, 0.5),
        ("a", 4, 0.25),
        ("of nothing", 0, 3.0),
    ]
    assert filled.best_over_steps("missing", parts=10) == []


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({"result": {"best_kl": 0.02}}, JobStatus.DONE),
        ({}, JobStatus.DONE),
        ({"error": "out of memory"}, JobStatus.FAILED),
        ({"error": ""}, JobStatus.FAILED),
        ({"error": "late", "result": {"best_kl": 0.5}}, JobStatus.FAILED),
        ({"cancelled": True}, JobStatus.CANCELLED),
    ],
)
def test_ended_job_keeps_its_outcome(filled: SqlRepository, outcome: dict, status: JobStatus) -> None:
    stored = queue(filled)
    assert not filled.finish_job(stored.id, "w", result={})  # nobody has claimed it
    claim(filled)
    assert not filled.finish_job(stored.id, "other", **outcome)
    assert filled.finish_job(stored.id, "w", **outcome)
    ended = filled.get_job(stored.id)
    assert (ended.status, ended.result, ended.error) == (status, outcome.get("result"), outcome.get("error"))
    assert ended.finished_at is not None
    assert status.is_final
    assert not filled.finish_job(stored.id, "w", error="again")
    assert filled.heartbeat_job(stored.id, "w") is JobSignal.LOST
    assert filled.claim_job("w", stale_after=AT_ONCE) is None
    assert filled.get_job(stored.id) == ended
    assert statuses(filled, stored.id) == ["queued", "running", status.value]


def test_cancelling(filled: SqlRepository) -> None:
    waiting, running, lost = (queue(filled, number) for number in range(3))
    assert filled.cancel_job(waiting.id, stale_after=HOUR).status is JobStatus.CANCELLED
    assert claim(filled).id == running.id
    asked = filled.cancel_job(running.id, stale_after=HOUR)
    assert (asked.status, asked.is_cancelling) == (JobStatus.RUNNING, True)
    assert filled.cancel_job(running.id, stale_after=HOUR) == asked
    assert filled.heartbeat_job(running.id, "w") is filled.job_signal(running.id, "w") is JobSignal.CANCEL
    assert filled.finish_job(running.id, "w", cancelled=True)
    assert filled.cancel_job(running.id, stale_after=HOUR).status is JobStatus.CANCELLED
    claim(filled, "gone")
    assert filled.cancel_job(lost.id, stale_after=AT_ONCE).status is JobStatus.CANCELLED
    assert filled.heartbeat_job(lost.id, "gone") is JobSignal.LOST
    assert filled.claim_job("w", stale_after=AT_ONCE) is None
    assert statuses(filled, running.id) == ["queued", "running", "running", "cancelled"]


def test_a_job_that_was_to_be_cancelled_is_not_taken_over(filled: SqlRepository) -> None:
    stored = queue(filled)
    claim(filled)
    filled.cancel_job(stored.id, stale_after=HOUR)
    assert filled.claim_job("next", stale_after=AT_ONCE) is None
    assert filled.get_job(stored.id).status is JobStatus.CANCELLED


def test_a_job_that_was_to_be_cancelled_is_not_given_back(filled: SqlRepository) -> None:
    stored = queue(filled)
    claim(filled)
    filled.cancel_job(stored.id, stale_after=HOUR)
    assert filled.release_job(stored.id, "w")
    ended = filled.get_job(stored.id)
    assert (ended.status, ended.is_cancelling, ended.finished_at is not None) == (JobStatus.CANCELLED, False, True)


@pytest.mark.parametrize("status", STATUSES)
def test_what_may_be_cancelled_and_what_queued_again(filled: SqlRepository, status: JobStatus) -> None:
    stored = queue(filled)
    with filled._engine.begin() as connection:
        values = {"status": status.value, "heartbeat_at": datetime.now(UTC), "error": "why"}
        connection.execute(update(JobRow).values(values))
    if status in (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PARKED):
        assert filled.retry_job(stored.id).status is JobStatus.QUEUED
        return
    with pytest.raises(ConflictError, match=f"only a job that failed.*is {status}"):
        filled.retry_job(stored.id)
    if status is JobStatus.DONE:
        with pytest.raises(ConflictError, match="ended cannot be cancelled"):
            filled.cancel_job(stored.id, stale_after=HOUR)


def test_result_must_be_json_and_stale_after_positive(filled: SqlRepository) -> None:
    stored = queue(filled)
    claim(filled)
    with pytest.raises(InputError, match="the result of a job must be a JSON document"):
        filled.finish_job(stored.id, "w", result={"kl": float("inf")})
    with pytest.raises(InputError, match="stale_after must not be negative"):
        filled.claim_job("w", stale_after=-HOUR)
    assert filled.get_job(stored.id).status is JobStatus.RUNNING


def test_threads_claim_every_job_once(filled: SqlRepository) -> None:
    queued = [queue(filled, number).id for number in range(24)]
    barrier = threading.Barrier(6)

    def work(thread: int) -> list[str]:
        barrier.wait()
        claimed = []
        while (found := filled.claim_job(f"worker-{thread}", stale_after=HOUR)) is not None:
            claimed.append(found.id)
        return claimed

    with ThreadPoolExecutor(6) as pool:
        claims = [job_id for claimed in pool.map(work, range(6)) for job_id in claimed]
    assert sorted(claims) == sorted(queued)


def test_threads_that_report_and_cancel_number_events_without_gaps(filled: SqlRepository) -> None:
    stored = queue(filled)
    claim(filled)

    def act(number: int) -> None:
        if number == 5:
            filled.cancel_job(stored.id, stale_after=HOUR)
        filled.report_job(stored.id, "w", log=[f"{number}a", f"{number}b"])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(act, range(12)))
    assert statuses(filled, stored.id) == ["queued", "running", "running"]
    assert len(filled.last_job_log(stored.id, 100)) == 24
