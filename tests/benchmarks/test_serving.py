"""The mix of requests that is timed: every one can be met, and none is like another."""

from pathlib import Path
from typing import cast

import httpx
import pytest
from fastapi.testclient import TestClient

from benchmarks import serving
from benchmarks.serving import Asked, Served, _bodies, _percentiles
from pruning.plan import Workload
from service.app import create_app
from service.settings import Settings
from storage.records import DeviceRecord
from storage.sql_repository import open_repository
from tests.pruning.made_up_devices import made_up_profile
from tests.service.made_up import NOW, register_model

SERVED = Served("tiny", 8, "bench", Workload(prompt_tokens=15, output_tokens=8))


def test_requests_of_each_kind_can_be_met_and_are_priced_by_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "NUM_REQUESTS", 8)
    url = f"sqlite:///{tmp_path / 'lop.db'}"
    with open_repository(url, create=True) as repository:
        model = register_model(repository)
        repository.add_device(DeviceRecord(made_up_profile("bench", anatomy=model.anatomy), NOW))
    with TestClient(create_app(Settings(database_url=url))) as client:
        bodies = _bodies(cast("httpx.Client", client), SERVED)
        for kind in Asked:
            asked = [body for found, body in bodies if found is kind]
            assert len(asked) == 8 + serving.WARM_UP_REQUESTS // 3
            assert len({str(body) for body in asked}) == len(asked)
            for body in asked:
                assert body["method"] == "lop"
                answer = client.post("/v1/plans", json=body | {"method": "uniform"})
                assert answer.status_code == 201, answer.text
                limited = {name for name, most in (body.get("budget") or {}).items() if name.endswith(("bytes", "ms"))}
                assert len(limited) == {Asked.SPARSITY: 0, Asked.MEMORY: 1, Asked.MEMORY_AND_LATENCY: 2}[kind]
                if limited:
                    assert answer.json()["achieved"]["latency_source"] == "measured"


def test_a_device_that_was_not_measured_is_no_device_of_the_mix(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lop.db'}"
    with open_repository(url, create=True) as repository:
        register_model(repository)
    with (
        TestClient(create_app(Settings(database_url=url))) as client,
        pytest.raises(RuntimeError, match="measured with the model's own layers"),
    ):
        _bodies(cast("httpx.Client", client), Served("tiny", 8, "l4", Workload(prompt_tokens=15, output_tokens=8)))


def test_the_median_is_of_the_mix() -> None:
    found = _percentiles("x", {Asked.SPARSITY: [1.0, 2.0], Asked.MEMORY: [3.0, 4.0], Asked.MEMORY_AND_LATENCY: [9.0]})
    assert found["http_p50_ms_x"] == 3.0
    assert found["http_p50_ms_x_by_kind"] == {"sparsity": 1.5, "memory": 3.5, "memory_and_latency": 9.0}
