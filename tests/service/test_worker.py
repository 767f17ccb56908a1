import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from pruning.errors import InputError, SchemaRevisionError, StorageUnavailableError
from service.worker import Worker, WorkerOptions, run_worker, worker_name
from storage.contract import Repository
from storage.records import SearchRecord, SearchStatus
from tests.service.conftest import AwayRepository

ONCE = WorkerOptions(poll_seconds=0.02, heartbeat_seconds=0.02, stale_seconds=0.2, once=True)
FOR_EVER = WorkerOptions(poll_seconds=0.02, heartbeat_seconds=0.02, stale_seconds=0.2)


def status_of(repository: Repository, search: SearchRecord) -> SearchStatus:
    return repository.get_search(search.id).status


def wait_until(condition: Any) -> None:
    """Poll; the test's timeout ends it."""
    while not condition():
        time.sleep(0.01)


def test_once_runs_what_is_queued_oldest_first(repository: Repository) -> None:
    searches = [repository.add_search("tiny", {"number": n}) for n in range(3)]
    ran: list[int] = []

    def handler(search: SearchRecord) -> dict[str, Any]:
        ran.append(search.settings["number"])
        return {"square": search.settings["number"] ** 2}

    assert run_worker(repository, handler, options=ONCE) == 3
    assert ran == [0, 1, 2]
    for number, search in enumerate(searches):
        done = repository.get_search(search.id)
        assert (done.status, done.result, done.error) == (SearchStatus.DONE, {"square": number**2}, None)
    assert run_worker(repository, handler, options=ONCE) == 0


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (InputError("the model must be there", values="tiny"), "the model must be there (got tiny)"),
        (ZeroDivisionError("inside"), "ZeroDivisionError: inside"),
    ],
)
def test_a_failed_search_says_why_and_the_next_one_runs(
    repository: Repository, failure: Exception, message: str
) -> None:
    bad, good = repository.add_search("tiny", {"bad": True}), repository.add_search("tiny", {})

    def handler(search: SearchRecord) -> dict[str, Any]:
        if search.settings.get("bad"):
            raise failure
        return {}

    assert run_worker(repository, handler, options=ONCE) == 2
    failed = repository.get_search(bad.id)
    assert (failed.status, failed.error, failed.result) == (SearchStatus.FAILED, message, None)
    assert status_of(repository, good) == SearchStatus.DONE


def test_a_result_that_is_no_json_fails_the_search(repository: Repository) -> None:
    search = repository.add_search("tiny", {})
    assert run_worker(repository, lambda _: {"kl": float("nan")}, options=ONCE) == 1
    assert status_of(repository, search) == SearchStatus.FAILED


def test_heartbeats_keep_a_long_search(repository: Repository) -> None:
    search = repository.add_search("tiny", {})
    stale_after = timedelta(seconds=ONCE.stale_seconds)

    def handler(claimed: SearchRecord) -> dict[str, Any]:
        first = repository.get_search(claimed.id).heartbeat_at
        assert first is not None
        # Longer than it takes to go stale: without heartbeats the claim below would succeed.
        wait_until(lambda: (repository.get_search(claimed.id).heartbeat_at or first) > first + 2 * stale_after)
        assert repository.claim_search("thief", stale_after=stale_after) is None
        return {"done": True}

    assert run_worker(repository, handler, options=ONCE, name="owner") == 1
    done = repository.get_search(search.id)
    assert (done.status, done.worker) == (SearchStatus.DONE, "owner")


def test_a_lost_worker_is_replaced(repository: Repository) -> None:
    search = repository.add_search("tiny", {})
    assert repository.claim_search("lost", stale_after=timedelta(seconds=60)) is not None
    worker = Worker(repository, lambda _: {"by": "the second"}, options=FOR_EVER)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: status_of(repository, search) == SearchStatus.DONE)
    worker.stop()
    thread.join()
    assert repository.get_search(search.id).result == {"by": "the second"}
    assert not repository.finish_search(search.id, "lost", result={"by": "the first"})


def test_a_result_after_the_claim_was_lost_is_dropped(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    search = repository.add_search("tiny", {})

    def handler(claimed: SearchRecord) -> dict[str, Any]:
        assert repository.claim_search("thief", stale_after=timedelta(0)) is not None
        return {"by": "the slow one"}

    options = WorkerOptions(poll_seconds=0.02, heartbeat_seconds=30, stale_seconds=60, once=True)
    assert run_worker(repository, handler, options=options) == 0
    taken = repository.get_search(search.id)
    assert (taken.status, taken.worker, taken.result) == (SearchStatus.RUNNING, "thief", None)
    assert "taken over" in caplog.text


def test_several_workers_share_the_queue(repository: Repository) -> None:
    searches = [repository.add_search("tiny", {"number": n}) for n in range(12)]
    ran: list[str] = []

    def handler(search: SearchRecord) -> dict[str, Any]:
        ran.append(search.id)
        return {}

    threads = [
        threading.Thread(target=run_worker, args=(repository, handler), kwargs={"options": ONCE}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == sorted(search.id for search in searches)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_waiting_worker(repository: Repository, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    assert run_worker(repository, lambda _: {}, options=FOR_EVER) == 0
    assert signal.getsignal(number) is before


def test_a_signal_interrupts_a_search_which_the_next_worker_takes_over(repository: Repository) -> None:
    search = repository.add_search("tiny", {})

    def endless(_: SearchRecord) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.01)

    assert run_worker(repository, endless, options=FOR_EVER) == 0
    assert status_of(repository, search) == SearchStatus.RUNNING
    time.sleep(FOR_EVER.stale_seconds)
    assert run_worker(repository, lambda _: {"resumed": True}, options=ONCE) == 1
    assert repository.get_search(search.id).result == {"resumed": True}


def test_a_database_that_is_away_is_waited_for(repository: Repository) -> None:
    search = repository.add_search("tiny", {})
    times_away = 3

    class Flaky:
        def claim_search(self, *args: Any, **kwargs: Any) -> SearchRecord | None:
            nonlocal times_away
            if times_away:
                times_away -= 1
                raise StorageUnavailableError("the database must answer")
            return repository.claim_search(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(repository, name)

    worker = Worker(Flaky(), lambda _: {}, options=FOR_EVER)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: status_of(repository, search) == SearchStatus.DONE)
    worker.stop()
    thread.join()


def test_once_does_not_wait_for_the_database() -> None:
    away = AwayRepository(StorageUnavailableError("the database must answer"))
    with pytest.raises(StorageUnavailableError):
        run_worker(away, lambda _: {}, options=ONCE)  # type: ignore[arg-type]


def test_a_wrong_revision_ends_the_worker() -> None:
    away = AwayRepository(SchemaRevisionError("the schema is old", remedy="Run `lop db upgrade`"))
    with pytest.raises(SchemaRevisionError, match="lop db upgrade"):
        run_worker(away, lambda _: {}, options=FOR_EVER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"poll_seconds": 0}, {"poll_seconds": float("nan")}, {"heartbeat_seconds": -1}, {"stale_seconds": 15}],
)
def test_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        WorkerOptions(**options)  # type: ignore[arg-type]


def test_names_differ() -> None:
    assert worker_name() != worker_name()
