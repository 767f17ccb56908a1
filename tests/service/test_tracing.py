"""Traces: none unless asked for; of requests by their id, of jobs by theirs. Without the extra some are skipped."""

from importlib.util import find_spec

import pytest
from fastapi.testclient import TestClient

from pruning.errors import InputError, MissingExtraError
from service import tracing
from service.app import create_app
from service.settings import Settings
from service.tracing import NOTHING_TRACED, start_tracing
from service.worker import WorkerOptions, run_worker
from storage.contract import Repository
from storage.records import NewJob

TRACED = Settings(traces=True)
IS_HERE = find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None
with_extra = pytest.mark.skipif(not IS_HERE, reason="the extra otel is not installed")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*tracing.ENDPOINTS, "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_traced_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert start_tracing(Settings(), "x") is NOTHING_TRACED


def test_without_the_extra_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None if name == "opentelemetry.sdk" else object())
    with pytest.raises(MissingExtraError, match=r'pip install "lop-service\[otel\]"'):
        start_tracing(TRACED, "x")


def test_where_traces_go_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda _name: object())
    with pytest.raises(InputError, match=r"a place to go.*OTEL_EXPORTER_OTLP_ENDPOINT"):
        start_tracing(TRACED, "x")


@with_extra
def test_the_process_names_itself_and_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.otel import OtelTracing, exporting_provider

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    started = start_tracing(TRACED, "lop-server")
    assert isinstance(started, OtelTracing)
    started.close()
    provider = exporting_provider("lop-server")
    assert provider.resource.attributes["service.name"] == "lop-server"
    provider.shutdown()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pruning")
    provider = exporting_provider("lop-server")
    assert provider.resource.attributes["service.name"] == "pruning"
    provider.shutdown()


@with_extra
def test_a_request_and_the_job_that_it_asks_for(repository: Repository) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from service.otel import OtelTracing

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    traced = OtelTracing(provider)
    with TestClient(
        create_app(Settings(), repository=repository, tracing=traced), base_url="http://127.0.0.1"
    ) as client:
        client.get("/healthz")
        client.get("/v1/models", headers={"x-request-id": "mine"})
        made = client.get("/v1/models/metrics")  # a model's name, and no address that machines ask for
        asked = client.post("/v1/jobs", json={"kind": "train", "model": "tiny"})
    assert asked.status_code == 201, asked.text
    repository.add_job(NewJob("train", "tiny", {}, "test"))

    def handler(job: object, _reporter: object) -> dict[str, object]:
        if getattr(job, "id", "") != asked.json()["id"]:
            raise InputError("the second one fails")
        return {}

    assert run_worker(repository, handler, options=WorkerOptions(once=True), tracing=traced) == 2
    traced.close()
    listed, missing, job_asked, ran, failed = kept.get_finished_spans()  # none of /healthz
    assert (listed.name, listed.attributes["lop.request_id"]) == ("GET /v1/models", "mine")
    assert missing.attributes["lop.request_id"] == made.headers["x-request-id"]
    assert missing.name == "GET /v1/models/{model_id:path}"
    assert job_asked.attributes["lop.job_id"] == ran.attributes["lop.job_id"] == asked.json()["id"]
    assert (ran.name, ran.attributes["lop.job_kind"], ran.status.is_ok) == ("job train", "train", True)
    assert not failed.status.is_ok
    assert "the second one fails" in failed.status.description
