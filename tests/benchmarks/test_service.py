"""What `bench-service` counts and compares, on numbers worked out by hand."""

import itertools
import socket
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.service_fuzz import _expected, with_known_names
from benchmarks.service_kill import Asked, Asker, check_undisturbed, finish
from benchmarks.service_kill_jobs import (
    APPLIED,
    RECOVERED,
    differences,
    ended_twice,
    first_jobs,
    interrupted_by_kind,
    other_jobs,
    outcome,
)
from benchmarks.service_load import load
from benchmarks.service_processes import THREADS, Child, wait_until
from benchmarks.service_soak import soak_figures
from benchmarks.service_speed import WITH_KEY, WITH_LIMITED_KEY, committing, known_figures
from service.app import create_app
from service.authentication import needed_scope
from service.jobs.settings import KINDS, read_settings
from service.settings import Settings
from storage.records import KeyScope, NewJob
from storage.sql_repository import open_repository

API_PATHS = ("/healthz", "/v1/plans", "/v1/plans/x", "/v1/jobs", "/v1/jobs/x/retry", "/v1/datasets", "/metrics", "/x")


def test_known_plans_are_compared_within_a_turn() -> None:
    rates = {1: {"hello": 1000, "post": 500, "get": 800}, 2: {"hello": 100, "post": 80, "get": 90}}
    rates[3] = {"hello": 1000, "post": 600, "get": 700}
    for of in rates.values():
        of["post beside commits"] = of["post"] // 2
        of[WITH_KEY], of[WITH_LIMITED_KEY] = of["post"] * 4 // 5, of["post"] * 7 // 10
    rows = [
        {
            "load": name,
            "processes": processes,
            "turn": turn,
            "per_second": rate * (1.5 if processes == 2 else 1),
            "p50_ms": 1.0,
            "p99_ms": float(turn),
            "failed": 0,
        }
        for turn, of in rates.items()
        for name, rate in of.items()
        for processes in (1, 2)
    ]
    found = known_figures(rows)
    assert found["cached_plan_rps_vs_hello"] == pytest.approx(0.6)  # of .5, .8 and .6
    assert found["cached_plan_rps_vs_hello_with_key"] == pytest.approx(0.48)
    assert found["cached_plan_rps_vs_hello_with_limited_key"] == pytest.approx(0.42)
    assert found["two_servers_share_of_ideal"] == pytest.approx(0.75)
    assert found["cached_plan_p99_ms"] == 2.0
    assert found["cached_plan_rps_beside_commits_vs_hello"] == pytest.approx(0.3)
    assert found["cached_plan_rps_beside_commits"] == 250


def test_beside_commits_there_are_commits(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lop.db'}"
    with open_repository(url, create=True) as repository:
        for _ in range(2):  # one turn after the other
            with committing(url):
                marks = {repository.commit_mark()}
                while len(marks) < 4:
                    marks.add(repository.commit_mark())
        assert [job.status.value for job in repository.list_jobs()] == ["done", "done"]


def test_memory_grows_from_after_five_minutes_to_the_end() -> None:
    def row(seconds: float, rss: float) -> dict[str, float]:
        return {"seconds": seconds, "rss_bytes": rss, "sockets": seconds / 60, "database_connections": 3}

    rows = [row(0, 50), row(299, 60), row(310, 100), row(350, 102), row(400, 500), row(1750, 110), row(1799, 112.1)]
    found = soak_figures(rows, 30)
    assert found["soak_memory_growth"] == pytest.approx(111.05 / 101 - 1)
    assert found["soak_most_sockets"] == pytest.approx(1799 / 60)
    assert found["soak_most_database_connections"] == 3


def test_what_an_undisturbed_run_left_and_nothing_else_is_there() -> None:
    whole: dict[str, Any] = {"samples": ["a", "b"], "searches": 2, "jobs": {"x": 1, "y": 2}, "models": {"m": "1"}}
    whole |= {"predictors": {"p": "1"}, "files": {}}
    assert differences(whole, whole) == {"lost": [], "doubled": [], "different": []}
    found = differences(
        {**whole, "samples": ["a", "a"], "searches": 3, "jobs": {"x": 1, "y": 3, "z": 4}, "models": {}}, whole
    )
    assert [len(found[name]) for name in ("lost", "doubled", "different")] == [2, 3, 1]
    assert differences({**whole, "searches": 1}, whole)["lost"] == ["1 searches instead of 2"]
    trained_otherwise = differences({**whole, "predictors": {"q": "2"}}, whole)
    assert trained_otherwise == {"lost": ["predictors p"], "doubled": ["predictors q"], "different": []}


def test_an_undisturbed_run_that_is_not_whole_is_nothing_to_compare_with() -> None:
    whole: dict[str, Any] = {name: {"x": {"status": "done"}} for name in ("jobs", "samples", "models", "files")}
    whole |= {"searches": 1, "predictors": {"p": "1"}}
    check_undisturbed(whole, Asked())
    empty: list[dict[str, Any]] = [{"samples": []}, {"searches": 0}, {"predictors": {}}]
    for wrong in ({**whole, **change} for change in [{"jobs": {"x": {"status": "failed"}}}, *empty]):
        with pytest.raises(RuntimeError, match="nothing was killed"):
            check_undisturbed(wrong, Asked())
    with pytest.raises(RuntimeError, match="500 GET"):
        check_undisturbed(whole, Asked(unexpected=["500 GET /v1/jobs"]))


def test_claims_that_a_kill_took_are_counted(tmp_path: Path) -> None:
    with open_repository(f"sqlite:///{tmp_path}/lop.db", create=True) as repository:
        job, _ = repository.add_job(NewJob("train", "m", {}, "somebody"))
        for worker in ("first", "second", "third"):
            assert repository.claim_job(worker, stale_after=timedelta(0)) is not None
        repository.finish_job(job.id, "third", result={})
        repository.add_job(NewJob("apply", "m", {}, "somebody"))
        assert interrupted_by_kind(repository, repository.list_jobs()) == {"apply": 0, "train": 2}
        assert ended_twice(repository, repository.list_jobs()) == []


def test_jobs_are_of_every_kind_and_a_predictor_learns_from_a_search_that_has_ended() -> None:
    plans = {sparsity: str(sparsity) for sparsity in (*APPLIED, RECOVERED)}
    first, others = first_jobs("a" * 64), other_jobs("a" * 64, "b" * 64, plans)
    jobs = [*(job for chain in first for job in chain), *others]
    assert all(read_settings(job) is not None for job in jobs)
    assert {job["kind"] for job in jobs} == set(KINDS)
    (train,) = (job for job in jobs if job["kind"] == "train")
    # Samples of a search beside it would be learnt from as well, if that ran in time.
    searches = [job for job in jobs if job["kind"] == "search" and job["model"] == train["model"]]
    assert searches == [first[1][1]]
    assert all(searches[0][name] == train[name] for name in ("num_levels", "round_to"))


class _Service:
    """Ends each job when it is looked at for the second time; parks each of `parked` at the first look, until it is
    retried."""

    def __init__(self, parked: tuple[str, ...]) -> None:
        self._parked = list(parked)
        self._looks: Counter[str] = Counter()
        self.said: list[str] = []

    def job(self, settings: dict[str, str]) -> str:
        self.said.append(f"ask {settings['kind']}")
        return settings["kind"]

    def send(self, method: str, path: str, **_: object) -> httpx.Response:
        name = path.split("/")[3]
        if method == "POST":
            self.said.append(f"retry {name}")
            self._parked.remove(name)
            return httpx.Response(200)
        self._looks[name] += 1
        if name in self._parked:
            return httpx.Response(200, json={"status": "parked"})
        if self._looks[name] < 2:
            return httpx.Response(200, json={"status": "running"})
        self.said.append(f"{name} done")
        return httpx.Response(200, json={"status": "done"})


def test_the_next_of_a_chain_is_asked_for_when_the_one_before_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    service = _Service(parked=("search",))
    chains = [[{"kind": "register"}, {"kind": "search"}, {"kind": "train"}], [{"kind": "apply"}]]
    parked = finish(service, chains, after_asking=lambda: service.said.append("asked"))  # type: ignore[arg-type]
    assert parked == 1
    assert service.said[:3] == ["ask register", "ask apply", "asked"]
    chain = [said for said in service.said[3:] if "apply" not in said]
    assert chain == ["register done", "ask search", "retry search", "search done", "ask train", "train done"]


def test_a_recovered_checkpoint_is_compared_without_the_size_of_its_report(tmp_path: Path) -> None:
    """It tells of seconds and of the folders of the round."""
    found = []
    for size in (1, 2):
        with open_repository(f"sqlite:///{tmp_path}/{size}.db", create=True) as repository:
            for kind, rest in (("recover", {"recovery": {"kl": [2.0, 1.0]}}), ("apply", {})):
                job, _ = repository.add_job(NewJob(kind, "m", {"kind": kind}, "somebody"))
                repository.claim_job("worker", stale_after=timedelta(hours=1))
                repository.finish_job(job.id, "worker", result={"files": [{"name": "a", "bytes": size}], **rest})
            found.append(outcome(repository, tmp_path))
    (different,) = differences(found[1], found[0])["different"]
    assert "apply" in different


def test_what_was_dead_before_is_no_kill(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    assert not child.kill()
    child.start()
    assert child.kill()
    assert not child.kill()


@pytest.mark.parametrize(
    ("asker", "method", "path", "status"),
    [
        ("open", "POST", "/v1/jobs", None),
        ("nobody", "GET", "/v1/models", 401),
        ("nobody", "GET", "/healthz", None),
        ("read", "GET", "/v1/models", None),
        ("read", "POST", "/v1/plans", 403),
        ("plan", "POST", "/v1/plans", None),
        ("plan", "DELETE", "/v1/jobs/x", 403),
        ("run", "POST", "/v1/jobs", None),
        ("run", "DELETE", "/v1/jobs/mine", None),
        ("run", "DELETE", "/v1/jobs/theirs", 403),
        ("run", "POST", "/v1/jobs/theirs/retry", 403),
        ("run", "GET", "/v1/jobs/theirs", None),
        ("open", "DELETE", "/v1/jobs/theirs", None),
    ],
)
def test_who_is_to_be_refused(asker: str, method: str, path: str, status: int | None) -> None:
    assert _expected(asker, method, path, "theirs") == status


@pytest.mark.parametrize(("method", "path"), list(itertools.product(["GET", "POST", "DELETE", "PUT"], API_PATHS)))
def test_the_server_and_the_fuzzing_agree_on_who_may_do_what(method: str, path: str) -> None:
    needed = needed_scope(method, path)
    for scope in ("read", "plan", "run"):
        allowed = needed is None or KeyScope(scope).allows(needed)
        assert (_expected(scope, method, path, "") is None) == allowed
    assert _expected("nobody", method, path, "") == (None if needed is None else 401)


def test_requests_name_what_there_is_and_answers_keep_their_schemas() -> None:
    document = create_app(Settings()).openapi()
    answers = document["components"]["schemas"]["JobResponse"]
    fuzzed = with_known_names({**document}, "theirs")
    asked = fuzzed["components"]["schemas"]
    named = {x["name"]: x["schema"]["anyOf"][0] for x in fuzzed["paths"]["/v1/jobs/{job_id}"]["get"]["parameters"]}
    assert named == {"job_id": {"enum": ["theirs"]}}
    assert asked["PlanRequest"]["properties"]["model"]["anyOf"][0] == {"enum": ["tiny"]}
    assert asked["SearchJob"]["properties"]["model"]["anyOf"][0] == {"enum": ["tiny"]}
    assert asked["JobResponse"] is answers
    assert "anyOf" not in answers["properties"]["model"]


def test_children_share_the_cores_unless_they_are_to_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "5")
    said = []
    for environment in (None, {THREADS: None}):
        command = [sys.executable, "-c", f"import os; print(os.environ.get({THREADS!r}))"]
        child = Child(command, tmp_path / "log", environment=environment)
        child.start()
        wait_until(lambda: not child.is_alive, "the child")  # noqa: B023 (called before the next one)
        said.append(child.said.strip())
    assert said == ["1", "None"]


def test_the_load_generator_counts_answers_and_failures() -> None:
    """Against a server that answers the second of every three requests with 500, each in two packets."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                number = 0
                while request := connection.recv(4096):
                    asked.append(request)
                    number += 1
                    status = b"500 No" if number % 3 == 2 else b"200 OK"
                    connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\nab")
                    connection.sendall(b"cd")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        found = load([url], "GET", "/", headers={"Authorization": "Bearer k"}, seconds=0.2, connections=1)
        thread.join()
    assert found.per_second > 0
    assert found.failed > 0
    assert found.p99_ms >= found.p50_ms > 0
    assert all(b"\r\nAuthorization: Bearer k\r\n" in request for request in asked)


@pytest.mark.parametrize(
    ("answers", "unexpected"),
    [((None, 409), 0), ((503, 409), 0), ((409, 409), 1), ((None, 404, 409), 1)],
)
def test_what_was_done_before_the_server_was_killed_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[int | None, ...], unexpected: int
) -> None:
    waiting = list(answers)

    def request(*_: object, **__: object) -> httpx.Response:
        status = waiting.pop(0)
        if status is None:
            raise httpx.ReadError("killed")
        return httpx.Response(status)

    monkeypatch.setattr("httpx.request", request)
    monkeypatch.setattr("time.sleep", lambda _: None)
    asked = Asked()
    asker = Asker([SimpleNamespace(url="http://server")], asked, 0)  # type: ignore[list-item]
    assert asker.send("POST", "/v1/jobs/j/retry", if_done=409).status_code == 409
    assert (waiting, len(asked.unexpected)) == ([], unexpected)
