"""What a worker tells Prometheus."""

import logging
import re
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from lop.cli import app
from pruning.errors import InputError, StorageUnavailableError
from service.jobs.reporting import JobReporter
from service.worker import WorkerOptions, run_worker
from service.worker_metrics import WorkerMetrics
from storage.contract import Repository
from storage.database import upgrade
from storage.records import JobRecord
from storage.sql_repository import open_repository
from tests.forked import start_lop
from tests.storage.examples import job

ONCE = WorkerOptions(poll_seconds=0.02, heartbeat_seconds=30, stale_seconds=60, once=True)


def figures(told: WorkerMetrics | str) -> dict[tuple[str, ...], float]:
    """Values of `lop_worker_...` by name and labels' values."""
    text = told if isinstance(told, str) else told.text().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("lop_worker_") and not sample.name.endswith("_created")
    }


def test_jobs_are_counted_by_how_they_ended(repository: Repository) -> None:
    outcomes = ("failed", "cancelled", "done", "taken_over", "given_back")
    for number in range(len(outcomes) - 1):
        repository.add_job(job(number, model_id="tiny"))
    metrics = WorkerMetrics()
    busy: list[float] = []

    def handler(job: JobRecord, reporter: JobReporter) -> dict[str, Any]:
        busy.append(figures(metrics)["lop_worker_busy",])
        match outcomes[job.settings["number"]]:
            case "failed":
                raise InputError("no such thing")
            case "cancelled":
                repository.cancel_job(job.id, stale_after=timedelta(hours=1))
                reporter.step(1, 2, "late")
            case "taken_over":
                assert repository.claim_job("thief", stale_after=timedelta(0)) is not None
            case "given_back":
                raise StorageUnavailableError("away")
        return {}

    assert run_worker(repository, handler, options=ONCE, metrics=metrics) == 3
    repository.add_job(job(4, kind="train", model_id="tiny"))
    with pytest.raises(StorageUnavailableError):
        run_worker(repository, handler, options=ONCE, metrics=metrics)
    found = figures(metrics)
    assert busy == [1] * 5
    assert found["lop_worker_busy",] == 0
    kinds = {outcome: "train" if outcome == "given_back" else "search" for outcome in outcomes}
    assert {key[1:]: value for key, value in found.items() if key[0] == "lop_worker_jobs_total"} == {
        (kind, outcome): 1 for outcome, kind in kinds.items()
    }
    assert (found["lop_worker_job_seconds_count", "search"], found["lop_worker_job_seconds_count", "train"]) == (4, 1)


def test_it_is_asked_over_http_and_a_port_that_is_taken_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics = WorkerMetrics()
    with metrics.job("search") as ended:
        ended("done")
    with metrics.served("127.0.0.1", 0) as port:
        [told] = [record.getMessage() for record in caplog.records if record.name == "service.worker"]
        answer = httpx.get(told.removeprefix("metrics are at "))
        assert figures(answer.text)["lop_worker_jobs_total", "search", "done"] == 1
        assert "process_resident_memory_bytes" in answer.text
        with pytest.raises(InputError, match=f"127.0.0.1:{port}.*another --metrics-port"):
            metrics.served("127.0.0.1", port).__enter__()
    with socket.create_server(("127.0.0.1", port)):
        pass  # it listens no more


def test_the_command_answers_while_it_waits(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lop.db"
    upgrade(url)
    log = tmp_path / "log"
    process = start_lop("worker", "--database", url, "--metrics-port", "0", stdout=log, stderr=log)
    try:
        while (found := re.search(r"metrics are at (\S+)", log.read_text() if log.exists() else "")) is None:
            assert process.is_alive(), log.read_text()
            time.sleep(0.02)
        assert figures(httpx.get(found[1]).text)["lop_worker_busy",] == 0
    finally:
        process.terminate()
        process.join()
    assert process.exitcode == 0


def test_the_command_counts_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And hands on what it counts with to what it answers with."""
    url = f"sqlite:///{tmp_path}/lop.db"
    with open_repository(url, create=True) as repository:
        repository.add_job(job(model_id="tiny"))
    made: list[WorkerMetrics] = []

    class Kept(WorkerMetrics):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr("service.worker_metrics.WorkerMetrics", Kept)
    ran = CliRunner().invoke(app, ["worker", "--once", "--database", url, "--metrics-port", "0"])
    assert ran.exit_code == 0, ran.output
    [metrics] = made
    assert figures(metrics)["lop_worker_jobs_total", "search", "failed"] == 1  # no such model


def test_a_host_without_a_port_is_refused(tmp_path: Path) -> None:
    words = ["worker", "--once", "--database", f"sqlite:///{tmp_path}/lop.db", "--metrics-host", "0.0.0.0"]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, InputError)
    assert "--metrics-port 9100" in str(error)
