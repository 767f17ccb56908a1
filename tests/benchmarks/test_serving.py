"""The requests that are timed: every one can be met, and none is like another. And what FLAP is timed with."""

from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from benchmarks import serving
from benchmarks.flap_statistics import flap_statistics
from benchmarks.serving import ROUNDED, Asked, Rounded, Served, _bodies, percentiles, rounded_milliseconds
from benchmarks.subject import REFERENCE
from pruning.allocators.flap import allocate_flap
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.scope import Scope
from pruning.planning.target import ffn_parameter_limits, limits_for_sparsity
from pruning.planning.workload import Workload
from service.app import create_app
from service.settings import Settings
from storage.records import DeviceRecord
from storage.sql_repository import open_repository
from tests.pruning.made_up_devices import made_up_profile
from tests.service.made_up import NOW, register_model
from tests.tiny_models import save_tiny_checkpoint, write_conversations

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
    found = percentiles("x", {Asked.SPARSITY: [1.0, 2.0], Asked.MEMORY: [3.0, 4.0], Asked.MEMORY_AND_LATENCY: [9.0]})
    assert found["http_p50_ms_x"] == 3.0
    assert found["http_p50_ms_x_by_kind"] == {"sparsity": 1.5, "memory": 3.5, "memory_and_latency": 9.0}


def test_requests_of_another_rounding_are_new_ones_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = []

    def milliseconds(_client: httpx.Client, body: dict[str, Any]) -> float:
        bodies.append(body)
        return float(len(bodies))

    monkeypatch.setattr(serving, "milliseconds", milliseconds)
    spent = rounded_milliseconds("http://127.0.0.1", Rounded("tiny", 24, tp_size=2, largest=0.3))
    assert spent == [float(n) for n in range(serving.WARM_UP_REQUESTS + 1, len(bodies) + 1)]
    assert len(spent) == 20
    sparsities = {body.pop("sparsity") for body in bodies}
    assert len(sparsities) == len(bodies)
    assert min(sparsities) >= 0.1
    assert 0.25 < max(sparsities) <= 0.3
    assert all(body == {"model": "tiny", "round_to": 24, "tp_size": 2, "method": "lop"} for body in bodies)


def test_requests_of_another_rounding_can_be_met() -> None:
    anatomy = read_anatomy(REFERENCE / "model")
    for rounded in ROUNDED.values():
        if rounded.model != serving.LARGE:
            space = ffn_widths(anatomy, round_to=rounded.round_to, tp_size=rounded.tp_size)
            limits_for_sparsity(anatomy, space, rounded.largest, Scope.FFN)


def test_flap_is_timed_with_all_that_it_needs(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    model = load_model(folder)
    conversations = load_conversations(write_conversations(tmp_path / "data", 5))
    batches = make_batches(conversations, load_processor(folder), batch_size=2)
    batches[0].inputs["attention_mask"][0, :3] = 0  # padding counts nowhere
    found, whole = flap_statistics(model, batches), measure_statistics(StatisticsKind.ACTIVATIONS, model, batches)
    for name in ("ffn_mean", "ffn_variance", "down_norm"):
        for ours, theirs in zip(found.per_layer(name), whole.per_layer(name), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    anatomy = anatomy_of(model)
    limits = ffn_parameter_limits(anatomy, ffn_widths(anatomy, round_to=8), anatomy.ffn_parameters // 2)
    assert allocate_flap(anatomy, found, limits).architecture == allocate_flap(anatomy, whole, limits).architecture
