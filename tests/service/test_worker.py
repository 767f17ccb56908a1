import logging
import os
import signal
import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from pruning.errors import InputError, SchemaRevisionError, StorageUnavailableError
from service.jobs.reporting import JobReporter, printable
from service.worker import MAX_FAILURE, Worker, WorkerOptions, run_worker, worker_name
from storage.contract import Repository
from storage.data_store import DataStoreUnavailableError
from storage.records import JobEventKind, JobProgress, JobRecord, JobStatus
from tests.service.conftest import AwayRepository
from tests.storage.examples import job

ONCE = WorkerOptions(poll_seconds=0.02, heartbeat_seconds=0.02, stale_seconds=0.2, once=True)
PATIENT = WorkerOptions(poll_seconds=0.02, heartbeat_seconds=30, stale_seconds=60, once=True)
FOR_EVER = WorkerOptions(poll_seconds=0.02, heartbeat_seconds=0.02, stale_seconds=0.2)


def queue(repository: Repository, number: int = 0, **values: Any) -> JobRecord:
    return repository.add_job(job(number, model_id="tiny", **values))[0]


def status_of(repository: Repository, queued: JobRecord) -> JobStatus:
    return repository.get_job(queued.id).status


def wait_until(condition: Any) -> None:
    """Poll; the test's timeout ends it."""
    while not condition():
        time.sleep(0.01)


def test_once_runs_what_is_queued_oldest_first(repository: Repository) -> None:
    jobs = [queue(repository, n) for n in range(3)]
    ran: list[int] = []

    def handler(job: JobRecord, _: JobReporter) -> dict[str, Any]:
        ran.append(job.settings["number"])
        return {"square": job.settings["number"] ** 2}

    assert run_worker(repository, handler, options=ONCE) == 3
    assert ran == [0, 1, 2]
    for number, queued in enumerate(jobs):
        done = repository.get_job(queued.id)
        assert (done.status, done.result, done.error) == (JobStatus.DONE, {"square": number**2}, None)
    assert run_worker(repository, handler, options=ONCE) == 0


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (InputError("the model must be there", values="tiny"), "the model must be there (got tiny)"),
        (ZeroDivisionError("inside"), "ZeroDivisionError: inside"),
        pytest.param(ValueError("a\0b\nc"), "ValueError: ab c", id="what PostgreSQL does not hold"),
        pytest.param(ValueError("x" * 5000), f"ValueError: {'x' * 5000}"[:MAX_FAILURE], id="long"),
    ],
)
def test_a_failed_job_says_why_and_the_next_one_runs(repository: Repository, failure: Exception, message: str) -> None:
    bad, good = queue(repository, 1), queue(repository, 2)

    def handler(job: JobRecord, _: JobReporter) -> dict[str, Any]:
        if job.settings["number"] == 1:
            raise failure
        return {}

    assert run_worker(repository, handler, options=ONCE) == 2
    failed = repository.get_job(bad.id)
    assert (failed.status, failed.error, failed.result) == (JobStatus.FAILED, message, None)
    assert status_of(repository, good) == JobStatus.DONE


def test_what_no_database_holds_is_written_otherwise() -> None:
    # Not as a job's failure: xdist cannot send what is logged of that.
    assert printable("a\0b\ud800\n c", most=4) == "ab\\ud800"
    assert printable("abc", most=2) == "ab"


def test_a_result_that_is_no_json_fails_the_job(repository: Repository) -> None:
    queued = queue(repository)
    assert run_worker(repository, lambda *_: {"kl": float("nan")}, options=ONCE) == 1
    assert status_of(repository, queued) == JobStatus.FAILED


def test_heartbeats_keep_a_long_job(repository: Repository) -> None:
    queued = queue(repository)
    stale_after = timedelta(seconds=ONCE.stale_seconds)

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        first = repository.get_job(claimed.id).heartbeat_at
        assert first is not None
        # Longer than it takes to go stale: without heartbeats the claim below would succeed.
        wait_until(lambda: (repository.get_job(claimed.id).heartbeat_at or first) > first + 2 * stale_after)
        assert repository.claim_job("thief", stale_after=stale_after) is None
        return {"done": True}

    assert run_worker(repository, handler, options=ONCE, name="owner") == 1
    done = repository.get_job(queued.id)
    assert (done.status, done.worker) == (JobStatus.DONE, "owner")


def test_a_lost_worker_is_replaced(repository: Repository) -> None:
    queued = queue(repository)
    assert repository.claim_job("lost", stale_after=timedelta(seconds=60)) is not None
    worker = Worker(repository, lambda *_: {"by": "the second"}, options=FOR_EVER)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: status_of(repository, queued) == JobStatus.DONE)
    worker.stop()
    thread.join()
    assert repository.get_job(queued.id).result == {"by": "the second"}
    assert not repository.finish_job(queued.id, "lost", result={"by": "the first"})


def test_a_result_after_the_claim_was_lost_is_dropped(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    queued = queue(repository)

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        assert repository.claim_job("thief", stale_after=timedelta(0)) is not None
        return {"by": "the slow one"}

    assert run_worker(repository, handler, options=PATIENT) == 0
    taken = repository.get_job(queued.id)
    assert (taken.status, taken.worker, taken.result) == (JobStatus.RUNNING, "thief", None)
    assert "taken over" in caplog.text


def test_several_workers_share_the_queue(repository: Repository) -> None:
    jobs = [queue(repository, n) for n in range(12)]
    ran: list[str] = []

    def handler(job: JobRecord, _: JobReporter) -> dict[str, Any]:
        ran.append(job.id)
        return {}

    threads = [
        threading.Thread(target=run_worker, args=(repository, handler), kwargs={"options": PATIENT}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == sorted(queued.id for queued in jobs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_waiting_worker(repository: Repository, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    assert run_worker(repository, lambda *_: {}, options=FOR_EVER) == 0
    assert signal.getsignal(number) is before


def test_a_signal_interrupts_a_job_which_the_next_worker_takes_over(repository: Repository) -> None:
    queued = queue(repository)

    def endless(_: JobRecord, __: JobReporter) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.01)

    assert run_worker(repository, endless, options=FOR_EVER) == 0
    given_back = repository.get_job(queued.id)
    assert (given_back.status, given_back.attempts) == (JobStatus.QUEUED, 0)
    assert run_worker(repository, lambda *_: {"resumed": True}, options=ONCE) == 1
    assert repository.get_job(queued.id).result == {"resumed": True}


def test_a_database_that_is_away_is_waited_for(repository: Repository) -> None:
    queued = queue(repository)
    times_away = 3

    class Flaky:
        def claim_job(self, *args: Any, **kwargs: Any) -> JobRecord | None:
            nonlocal times_away
            if times_away:
                times_away -= 1
                raise StorageUnavailableError("the database must answer")
            return repository.claim_job(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(repository, name)

    worker = Worker(Flaky(), lambda *_: {}, options=FOR_EVER)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: status_of(repository, queued) == JobStatus.DONE)
    worker.stop()
    thread.join()


def test_once_does_not_wait_for_the_database() -> None:
    away = AwayRepository(StorageUnavailableError("the database must answer"))
    with pytest.raises(StorageUnavailableError):
        run_worker(away, lambda *_: {}, options=ONCE)  # type: ignore[arg-type]


def test_a_wrong_revision_ends_the_worker() -> None:
    away = AwayRepository(SchemaRevisionError("the schema is old", remedy="Run `lop db upgrade`"))
    with pytest.raises(SchemaRevisionError, match="lop db upgrade"):
        run_worker(away, lambda *_: {}, options=FOR_EVER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"poll_seconds": 0}, {"poll_seconds": float("nan")}, {"heartbeat_seconds": -1}, {"stale_seconds": 15}],
)
def test_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        WorkerOptions(**options)  # type: ignore[arg-type]


def test_names_differ() -> None:
    assert worker_name() != worker_name()


def test_progress_and_log_lines_are_told(repository: Repository) -> None:
    queued = queue(repository)
    seen: list[JobProgress | None] = []

    def handler(claimed: JobRecord, reporter: JobReporter) -> dict[str, Any]:
        for done in range(1, 4):
            logging.getLogger("lop.jobs").warning("step\n%d", done)
            reporter.step(done, 3, "sparsity 0.5", best=1 / done)
            seen.append(repository.get_job(claimed.id).progress)
        return {}

    assert run_worker(repository, handler, options=ONCE) == 1
    assert [p and (p.done, p.total, p.stage, p.best) for p in seen] == [
        (done, 3, "sparsity 0.5", 1 / done) for done in (1, 2, 3)
    ]
    assert repository.last_job_log(queued.id, 10) == ["WARNING step 1", "WARNING step 2", "WARNING step 3"]
    assert logging.getLogger("lop").handlers == []


def test_a_job_that_is_cancelled_stops_at_its_next_step(repository: Repository) -> None:
    queued, following = queue(repository, 1), queue(repository, 2)
    steps: list[int] = []

    def handler(claimed: JobRecord, reporter: JobReporter) -> dict[str, Any]:
        if claimed.id == following.id:
            return {"kept": True}
        for done in range(1, 100):
            steps.append(done)
            reporter.step(done, 100, "sparsity 0.5")
            if done == 2:
                assert repository.cancel_job(queued.id, stale_after=timedelta(hours=1)).is_cancelling
        return {}

    assert run_worker(repository, handler, options=ONCE) == 2
    assert steps == [1, 2, 3]
    ended = repository.get_job(queued.id)
    assert (ended.status, ended.result, ended.error, ended.is_cancelling) == (JobStatus.CANCELLED, None, None, False)
    assert status_of(repository, following) == JobStatus.DONE


def test_a_worker_that_lost_its_job_stops_at_the_next_step(repository: Repository) -> None:
    queued = queue(repository)

    def handler(claimed: JobRecord, reporter: JobReporter) -> dict[str, Any]:
        assert repository.claim_job("thief", stale_after=timedelta(0)) is not None
        reporter.step(1, 100, "sparsity 0.5")
        pytest.fail("went on")

    assert run_worker(repository, handler, options=PATIENT) == 0
    taken = repository.get_job(queued.id)
    assert (taken.status, taken.worker) == (JobStatus.RUNNING, "thief")


def test_a_job_that_keeps_killing_its_worker_is_parked(repository: Repository) -> None:
    queued = queue(repository)
    for number in range(3):
        assert repository.claim_job(f"killed-{number}", stale_after=timedelta(0)) is not None
    time.sleep(ONCE.stale_seconds)
    assert run_worker(repository, lambda *_: {}, options=ONCE) == 0
    parked = repository.get_job(queued.id)
    assert parked.status is JobStatus.PARKED
    assert "3 workers were lost while they ran this job" in str(parked.error)
    repository.retry_job(queued.id)
    assert run_worker(repository, lambda *_: {}, options=ONCE) == 1


def test_a_worker_takes_its_kinds(repository: Repository) -> None:
    search, train = queue(repository, kind="search"), queue(repository, kind="train")
    assert run_worker(repository, lambda *_: {}, options=replace(ONCE, kinds=["train"])) == 1
    assert (status_of(repository, search), status_of(repository, train)) == (JobStatus.QUEUED, JobStatus.DONE)


def test_a_job_in_hand_is_given_back_when_the_database_returns(repository: Repository) -> None:
    queued = queue(repository)
    tries = 0

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        if tries < 6:  # more often than a job may lose its worker
            raise StorageUnavailableError("the database must answer")
        return {}

    worker = Worker(repository, handler, options=FOR_EVER)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: status_of(repository, queued) == JobStatus.DONE)
    worker.stop()
    thread.join()
    assert repository.get_job(queued.id).attempts == 1


def until(repository: Repository, worker: Worker, jobs: list[JobRecord]) -> None:
    """Run the worker until these have ended."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: all(status_of(repository, one).is_final for one in jobs))
    worker.stop()
    thread.join()


def test_a_job_that_the_data_store_alone_fails_ends_and_the_next_one_runs(repository: Repository) -> None:
    stuck, behind = queue(repository, 1), queue(repository, 2)
    tries = 0

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        nonlocal tries
        if claimed.id == stuck.id:
            tries += 1
            raise DataStoreUnavailableError("the data store must be readable", values="/gone")
        return {}

    until(
        repository, Worker(repository, handler, options=replace(FOR_EVER, store_pauses=(0.01, 0.02))), [stuck, behind]
    )
    failed = repository.get_job(stuck.id)
    assert (tries, failed.status, failed.error) == (2, JobStatus.FAILED, "the data store must be readable (got /gone)")
    told = [event.document for event in repository.list_job_events(stuck.id) if event.kind is JobEventKind.LOG]
    assert sum("trying again in" in line["line"] for line in told) == 1
    assert status_of(repository, behind) == JobStatus.DONE


def test_a_data_store_that_is_away_is_waited_for_however_long(repository: Repository) -> None:
    """And no job fails for it."""
    jobs = [queue(repository, number) for number in range(3)]
    tries = 0

    def away() -> None:
        if tries < 9:  # more often than there are pauses
            raise DataStoreUnavailableError("the data store must be readable")

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        away()
        return {}

    options = replace(FOR_EVER, store_pauses=(0.01, 0.01))
    until(repository, Worker(repository, handler, options=options, check_store=away), jobs)
    assert [(repository.get_job(one.id).status, repository.get_job(one.id).attempts) for one in jobs] == [
        (JobStatus.DONE, 1)
    ] * 3


def test_once_waits_for_no_data_store(repository: Repository) -> None:
    queued = queue(repository)

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        raise DataStoreUnavailableError("the data store must be readable")

    with pytest.raises(DataStoreUnavailableError):
        run_worker(repository, handler, options=ONCE)
    assert status_of(repository, queued) == JobStatus.RUNNING  # until it goes stale


def test_a_data_store_that_comes_back_is_waited_for(repository: Repository) -> None:
    queued = queue(repository)
    tries = 0

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DataStoreUnavailableError("the data store must be readable")
        return {}

    until(repository, Worker(repository, handler, options=replace(FOR_EVER, store_pauses=(0.01, 0.01, 0.01))), [queued])
    done = repository.get_job(queued.id)
    assert (done.status, done.attempts) == (JobStatus.DONE, 1)


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_who_waits_for_the_data_store_hears(repository: Repository, how: str) -> None:
    queued = queue(repository)
    waits = threading.Event()

    def handler(claimed: JobRecord, _: JobReporter) -> dict[str, Any]:
        waits.set()
        raise DataStoreUnavailableError("the data store must be readable")

    worker = Worker(repository, handler, options=replace(FOR_EVER, store_pauses=(3600, 3600)))
    thread = threading.Thread(target=worker.run)
    thread.start()
    waits.wait()
    if how == "cancelled":
        repository.cancel_job(queued.id, stale_after=timedelta(seconds=60))
        wait_until(lambda: status_of(repository, queued) == JobStatus.CANCELLED)
    worker.stop()
    thread.join()
    assert status_of(repository, queued) == (JobStatus.CANCELLED if how == "cancelled" else JobStatus.QUEUED)


def test_time_left_is_by_the_last_steps(repository: Repository) -> None:
    queue(repository)
    claimed = repository.claim_job("w", stale_after=timedelta(hours=1))
    assert claimed is not None
    now = 0.0
    reporter = JobReporter(repository, claimed.id, "w", clock=lambda: now)
    for done in range(1, 101):  # the first hundred were read from the memo
        now += 0.01
        reporter.step(done, 1000, "sparsity 0.5")
    for done in range(101, 201):
        now += 2.0
        reporter.step(done, 1000, "sparsity 0.5")
    reporter.flush()
    progress = repository.get_job(claimed.id).progress
    assert progress is not None
    assert progress.seconds_left == pytest.approx(800 * 2.0)
    assert len(repository.list_job_events(claimed.id)) <= 2 + 200 // 5 + 1


def test_a_log_is_bounded(repository: Repository) -> None:
    queue(repository)
    claimed = repository.claim_job("w", stale_after=timedelta(hours=1))
    assert claimed is not None
    reporter = JobReporter(repository, claimed.id, "w")
    for number in range(2000):
        reporter.log(f"{number} \ud800\0" + "x" * 1000)
    reporter.flush()
    lines = repository.last_job_log(claimed.id, 5000)
    assert len(lines) == 1000
    assert max(map(len, lines)) <= 500 + 6
    assert "worker's own log" in lines[-1]
