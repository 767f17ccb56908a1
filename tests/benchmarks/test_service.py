"""What `bench-service` counts and compares, on numbers worked out by hand."""

import itertools
import random
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
from fastapi.testclient import TestClient

from benchmarks.service_fuzz import Found, _count, _expected
from benchmarks.service_fuzz_known import (
    NUM_ARCHIVES,
    REQUIRED,
    Ids,
    add_jobs_and_predictors,
    add_over_http,
    archive,
    name_known,
)
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
from benchmarks.service_subject import add_made_up_model
from pruning.data.packed_data import pack_archive
from service.app import create_app
from service.authentication import needed_scope
from service.datasets import LIMITS
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
    parked = finish(service, chains)  # type: ignore[arg-type]
    assert parked == 1
    assert service.said[:2] == ["ask register", "ask apply"]
    chain = [said for said in service.said[2:] if "apply" not in said]
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


def _case(mode: str = "positive", phase: str = "fuzzing", **parts: Any) -> SimpleNamespace:
    meta = SimpleNamespace(
        generation=SimpleNamespace(mode=SimpleNamespace(is_positive=mode == "positive")),
        phase=SimpleNamespace(name=SimpleNamespace(value=phase)),
    )
    return SimpleNamespace(**{"meta": meta, "path_parameters": {}, "query": {}, "body": None, **parts})


def test_most_of_the_names_in_valid_requests_are_known() -> None:
    ids: Ids = {
        "model": ["tiny"],
        "job_id": ["theirs"],
        "device": ["bench"],
        "reconstruct": ["d"],
        "dataset": ["d", "e"],
    }
    rng = random.Random(0)
    found: list[Any] = []
    for _ in range(200):
        body = {"kind": "k", "model": "x", "dataset": "y", "reconstruct": True, "latency": {"device": "z"}, "seed": 1}
        case = _case(path_parameters={"job_id": "?"}, query={"model": "x", "limit": "1"}, body=body)
        name_known(case, ids, rng)
        found.append(case)
    for named, known in (
        ([case.path_parameters["job_id"] for case in found], {"theirs"}),
        ([case.query["model"] for case in found], {"tiny"}),
        ([case.body["model"] for case in found], {"tiny"}),
        ([case.body["dataset"] for case in found], {"d", "e"}),
        ([case.body["latency"]["device"] for case in found if "latency" in case.body], {"bench"}),
    ):
        assert set(named) > known
        assert 0.7 < sum(name in known for name in named) / len(named) < 0.9
    assert {case.query["limit"] for case in found} == {"1"}
    assert {case.body.get("reconstruct", True) for case in found} == {True}
    assert {case.body["kind"] for case in found} == {"k"}
    assert 40 < sum("seed" in case.body for case in found) < 190


def test_what_a_link_names_and_what_is_to_be_refused_stays() -> None:
    rng = random.Random(0)
    for case in (_case("negative"), _case("positive", "stateful")):
        case.path_parameters = {"job_id": "?"}
        for _ in range(20):
            name_known(case, {"job_id": ["theirs"]}, rng)
        assert case.path_parameters == {"job_id": "?"}


def test_fields_that_bodies_need_are_not_left_out() -> None:
    document = create_app(Settings()).openapi()
    schemas = document["components"]["schemas"]
    bodies = {name for name in schemas if name.endswith("Job") and name != "CuttingJob" and "OfJob" not in name}
    needed = {field for name in (*bodies, "PlanRequest", "DeviceProfile") for field in schemas[name]["required"]}
    assert needed == REQUIRED


def test_a_request_for_a_plan_has_a_target_more_often_than_it_was_given_one() -> None:
    rng, bodies = random.Random(0), []
    for _ in range(50):
        case = _case(body={"model": "tiny"})
        name_known(case, {}, rng)
        bodies.append(case.body)
    assert {"sparsity", "budget", "device"} <= set().union(*bodies)
    assert {"model": "tiny"} in bodies
    for body in ({"model": "tiny", "sparsity": 0.5}, {"model": "tiny", "kind": "train"}):
        case = _case(body=body)
        name_known(case, {}, rng)
        assert "budget" not in case.body


def test_refused_bodies_are_no_findings_and_refused_paths_are() -> None:
    check = SimpleNamespace(name="positive_data_acceptance", failure_info=SimpleNamespace(failure=Exception()))
    check.failure_info.failure.message = "refused"
    for method, undocumented in (("POST", 0), ("GET", 1)):
        request = SimpleNamespace(method=method, uri="http://server/v1/plans/x", body=None)
        answer = SimpleNamespace(status_code=422, content=b"")
        found = Found()
        recorder = SimpleNamespace(
            interactions={"c": SimpleNamespace(request=request, response=answer)}, checks={"c": [check]}
        )
        _count(recorder, "open", found, "theirs")
        assert (found.requests, found.undocumented, found.server_errors) == (1, undocumented, 0)


def test_what_the_fuzzing_names_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lop.db'}"
    with open_repository(url, create=True) as repository:
        add_made_up_model(repository)
        ids = add_jobs_and_predictors(repository)
    settings = Settings(database_url=url, data_store=str(tmp_path / "store"))
    with TestClient(create_app(settings)) as client:
        ids |= add_over_http(client)  # type: ignore[arg-type]
        newer = {"Accept": "application/vnd.lop.plan.v2+json"}
        for path, parameter in (
            ("models", "model_id"),
            ("rankings", "sha256"),
            ("predictors", "predictor_id"),
            ("jobs", "job_id"),
            ("plans", "plan_id"),
            ("datasets", "dataset_id"),
            ("devices", "device_id"),
        ):
            for known in ids[parameter]:
                assert client.get(f"/v1/{path}/{known}", headers=newer).status_code == 200
        plan, (first, second, third) = ids["plan"][0], ids["dataset"]
        for job in (
            {"kind": "measure", "model": ids["model"][0], "dataset": first},
            {"kind": "recover", "plan": plan, "dataset": first, "selection": second, "validation": third},
            {"kind": "apply", "plan": plan, "reconstruct": first},
        ):
            assert client.post("/v1/jobs", json=job).status_code == 201


def test_there_are_so_many_archives_that_are_whole(tmp_path: Path) -> None:
    packed = set()
    for number in range(NUM_ARCHIVES):
        (tmp_path / "archive").write_bytes(archive(number))
        packed.add(pack_archive(tmp_path / "archive", tmp_path / f"{number}.tar", LIMITS).sha256)
    assert len(packed) == NUM_ARCHIVES


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
