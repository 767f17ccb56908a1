"""What operators are told: metrics, ids of requests, logs, readiness; and how many streams are open."""

import asyncio
import io
import json
import logging
from collections.abc import MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from pruning.errors import BusyError, StorageUnavailableError
from service.app import create_app
from service.event_streams import EventStreams
from service.keys import new_key
from service.logs import JsonFormatter, LineFormatter
from service.metrics import ServiceMetrics
from service.readiness import REMEMBERED_SECONDS, RememberedCheck
from service.request_id import begin_request
from service.settings import Settings
from storage.contract import Repository
from storage.records import KeyScope, NewJob
from tests.full_disk import no_file_grows
from tests.service.conftest import AwayRepository

PLAN = {"model": "tiny", "sparsity": 0.5}


def figures(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(x.name, frozenset(x.labels.items())): x.value for family in families for x in family.samples}


def requests(client: TestClient) -> dict[tuple[str, str, str], float]:
    return {
        (labels["method"], labels["route"], labels["status"]): value
        for (name, pairs), value in figures(client).items()
        if name == "lop_http_requests_total" and (labels := dict(pairs))
    }


def test_requests_are_counted_by_template_and_never_by_id(client: TestClient) -> None:
    plan = client.post("/v1/plans", json=PLAN).json()
    for path in (f"/v1/plans/{plan['plan_id']}", "/v1/plans/other", "/nowhere/at/all", "/jobs/secret", "/explorer"):
        client.get(path)
    client.head("/v1/models")
    client.post("/v1/plans", content=b"x" * 10**5, headers={"Content-Type": "application/json"})
    client.request("MADEUP", "/v1/models")
    found = requests(client)
    assert found == {
        ("POST", "/v1/plans", "201"): 1,
        ("GET", "/v1/plans/{plan_id}", "200"): 1,
        ("GET", "/v1/plans/{plan_id}", "404"): 1,
        ("GET", "/jobs/{job_id}", "404"): 1,
        ("GET", "/explorer", "200"): 1,
        ("HEAD", "/v1/models", "200"): 1,
        ("GET", "-", "404"): 1,
        ("POST", "-", "413"): 1,
        ("other", "/v1/models", "405"): 1,
    }
    known = figures(client)
    assert known["lop_http_request_seconds_count", frozenset({("route", "/v1/plans")})] == 1
    assert known["lop_http_requests_in_flight", frozenset()] == 1  # this one
    assert known["lop_database_up", frozenset()] == 1
    assert not any(plan["plan_id"] in str(name) or "secret" in str(name) for name in known)


def test_jobs_are_counted_by_kind_and_status(client: TestClient, repository: Repository) -> None:
    for kind in ("train", "train", "search"):
        repository.add_job(NewJob(kind, "tiny", {"kind": kind}, "somebody"))
    repository.claim_job("w", stale_after=timedelta(hours=1))
    jobs = {pairs: value for (name, pairs), value in figures(client).items() if name == "lop_jobs"}
    assert jobs == {
        frozenset({("kind", "train"), ("status", "running")}): 1,
        frozenset({("kind", "train"), ("status", "queued")}): 1,
        frozenset({("kind", "search"), ("status", "queued")}): 1,
    }


def test_metrics_take_a_key_where_there_are_any(settings: Settings, repository: Repository) -> None:
    record, key = new_key("prometheus", KeyScope.READ)
    repository.add_key(record)
    client = TestClient(create_app(settings))
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert "/metrics" not in client.get("/openapi.json").text


def test_a_database_that_is_gone_is_a_figure(settings: Settings) -> None:
    app = create_app(settings, repository=AwayRepository(StorageUnavailableError("the database must answer")))  # type: ignore[arg-type]
    text = app.state.resources.metrics.text().decode()
    assert "lop_database_up 0.0" in text
    assert "lop_jobs" not in text


def test_an_answer_names_its_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    assert client.get("/v1/models", headers={"X-Request-ID": "proxy-1.a_B"}).headers["x-request-id"] == "proxy-1.a_B"
    made = {client.get("/nowhere", headers={"X-Request-ID": x}).headers["x-request-id"] for x in ("", "a b", "x" * 65)}
    assert len(made) == 3
    assert all(len(x) == 32 for x in made)
    assert "x-request-id" in client.post("/v1/plans", content=b"x" * 10**6).headers


def line(formatter: logging.Formatter, **extra: object) -> str:
    stream = io.StringIO()
    logger, handler = logging.Logger("service.test"), logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    try:
        raise ZeroDivisionError("inside")
    except ZeroDivisionError:
        logger.exception('a "line"\nof two', extra=extra)
    return stream.getvalue()


def test_lines_of_the_log() -> None:
    begin_request({"headers": [(b"x-request-id", b"r1")]})
    told = json.loads(line(JsonFormatter(), fields={"status": 500, "route": "/v1/plans"}))
    assert (told["level"], told["logger"], told["request_id"]) == ("ERROR", "service.test", "r1")
    assert (told["status"], told["route"], told["message"]) == (500, "/v1/plans", 'a "line"\nof two')
    assert "ZeroDivisionError: inside" in told["traceback"]
    assert line(JsonFormatter()).count("\n") == 1
    assert 'ERROR service.test a "line"' in line(LineFormatter())
    assert "request_id=r1\n" in line(LineFormatter())


def test_readiness_tells_what_is_not_ready(settings: Settings, repository: Repository, tmp_path: Path) -> None:
    away = AwayRepository(StorageUnavailableError("the database must answer", remedy="Start it"))
    gone = TestClient(create_app(settings, repository=away)).get("/readyz")  # type: ignore[arg-type]
    assert gone.status_code == 503
    assert list(gone.json()["not_ready"]) == ["database"]
    assert "Start it" in gone.json()["not_ready"]["database"]

    (tmp_path / "file").touch()
    app = create_app(settings.model_copy(update={"data_store": str(tmp_path / "file" / "store")}))
    with TestClient(app) as client:
        told = client.get("/readyz")
        assert (told.status_code, told.json()["status"], list(told.json()["degraded"])) == (
            200,
            "ready",
            ["data store"],
        )
        assert client.post("/v1/plans", json=PLAN).status_code == 201
        app.state.resources.is_stopping = lambda: True
        stopping = client.get("/readyz")
        assert (stopping.status_code, list(stopping.json()["not_ready"])) == (503, ["server"])
        assert client.post("/v1/plans", json=PLAN).status_code == 201


def test_a_full_disk_is_told_by_a_server_that_reads_on(
    settings: Settings, repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    app = create_app(settings.model_copy(update={"data_store": str(tmp_path / "store")}))
    now = 100.0
    for check in (app.state.resources.database_writes, app.state.resources.data_store_works):
        check._clock = lambda: now
    with TestClient(app) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        now += 5
        with no_file_grows():
            told = client.get("/readyz")
            assert client.get("/v1/models").status_code == 200
        assert (told.status_code, sorted(told.json()["degraded"])) == (200, ["data store", "database"])
        assert "free disk space" in told.json()["degraded"]["database"]
        now += 4.9
        assert client.get("/readyz").json() == told.json()
        now += 0.1
        assert client.get("/readyz").json() == {"status": "ready"}


def test_a_check_runs_once_at_a_time_and_is_remembered() -> None:
    now, runs = 0.0, 0

    def nested() -> None:
        nonlocal runs
        runs += 1
        assert check.complaint() is None  # somebody else asks while this one runs
        raise StorageUnavailableError(f"run {runs}")

    check = RememberedCheck(nested, clock=lambda: now)
    assert [check.complaint() for _ in range(3)] == ["run 1"] * 3
    now += REMEMBERED_SECONDS

    def broken() -> None:
        raise ZeroDivisionError

    check._check = broken
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            check.complaint()


def test_so_many_streams_and_no_more(settings: Settings, repository: Repository) -> None:
    job, _ = repository.add_job(NewJob("train", "tiny", {"kind": "train", "model": "tiny"}, "somebody"))
    app = create_app(settings.model_copy(update={"max_event_streams": 1}))
    with TestClient(app) as client:
        with app.state.resources.event_streams.opened():
            refused = client.get(f"/v1/jobs/{job.id}/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["type"] == "urn:lop:busy"
        repository.cancel_job(job.id, stale_after=timedelta(hours=1))
        for _ in range(3):  # each gives its place back, also to one that asks for no job
            assert "cancelled" in client.get(f"/v1/jobs/{job.id}/events").text
            assert client.get("/v1/jobs/nope/events").status_code == 404
        assert "lop_event_streams 0.0" in client.get("/metrics").text


def test_a_stream_that_is_left_gives_its_place_back(settings: Settings, repository: Repository) -> None:
    """The client goes away in the middle: the application is called as a server does, which then hears of it."""
    job, _ = repository.add_job(NewJob("train", "tiny", {"kind": "train", "model": "tiny"}, "somebody"))
    app = create_app(settings.model_copy(update={"max_event_streams": 1}))
    streams: EventStreams = app.state.resources.event_streams

    async def watch() -> None:
        left, first = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, object]:
            if not first.is_set():
                first.set()
                return {"type": "http.request", "body": b"", "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if b"queued" in message.get("body", b""):
                with pytest.raises(BusyError), streams.opened():
                    pass
                left.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v1/jobs/{job.id}/events",
            "headers": [(b"host", b"127.0.0.1")],
            "query_string": b"",
        }
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("y", 1), "raw_path": b"/"}
        await app(scope, receive, send)

    asyncio.run(watch())
    with streams.opened():
        pass


def test_streams_are_counted_also_where_they_fail() -> None:
    streams = EventStreams(1, ServiceMetrics(lambda: AwayRepository(StorageUnavailableError("x"))))  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError), streams.opened():
        raise ZeroDivisionError
    with streams.opened(), pytest.raises(BusyError, match="LOP_MAX_EVENT_STREAMS"), streams.opened():
        pass
