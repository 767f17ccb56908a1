"""The parts of bench-axes that measure joint plans: they ask for and measure what they say. Not their figures."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi.testclient import TestClient

from benchmarks import axes_families, axes_http, axes_speed
from benchmarks.axes_http import DEVICE, Asked, joint_bodies, made_up_choices, made_up_kl, register_joint
from benchmarks.axes_speed import ALL, DENSE, FFN, half_plans, measure_model, speed_figures
from benchmarks.families import SUITES
from benchmarks.serving import LARGE
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.scope import Scope
from pruning.planning.workload import Workload
from service.app import create_app
from service.settings import Settings
from storage.records import DeviceRecord
from storage.sql_repository import open_repository
from tests.pruning.made_up_devices import made_up_profile
from tests.tiny_models import save_tiny_checkpoint, tiny_model


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    return anatomy_of(tiny_model("llava-llama"))


def test_requests_for_joint_plans_can_be_met_and_each_is_a_new_one(
    anatomy: ModelAnatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(axes_http, "ROUND_TO", 4)
    monkeypatch.setattr(axes_http, "DEVICE_WORKLOAD", Workload(prompt_tokens=12, output_tokens=4))  # the profile's
    url = f"sqlite:///{tmp_path / 'lop.db'}"
    with open_repository(url, create=True) as repository:
        register_joint(repository, anatomy, 30)
        profile = made_up_profile(DEVICE, anatomy=anatomy, attention=True)
        repository.add_device(DeviceRecord(profile, datetime.now(UTC)))
    asked: dict[Asked, list[dict[str, Any]]] = {kind: [] for kind in Asked}
    with TestClient(create_app(Settings(database_url=url))) as client:
        for seed in (0, 1):
            for kind, body in joint_bodies(cast("httpx.Client", client), LARGE, 4, seed=seed):
                asked[kind].append(body)
                answer = client.post("/v1/plans", json=body | {"method": "uniform"})
                assert answer.status_code == 201, answer.text  # 200 is one that was made before
    assert {kind: len(bodies) for kind, bodies in asked.items()} == dict.fromkeys(Asked, 8)
    limits = {
        kind: {frozenset(body["budget"]) - set(Workload.model_fields) for body in bodies}
        for kind, bodies in asked.items()
        if kind is not Asked.SPARSITY
    }
    assert limits == {
        Asked.MEMORY: {frozenset({"memory_bytes"})},
        Asked.MEMORY_AND_FLOPS: {frozenset({"memory_bytes", "flops"})},
        Asked.MEMORY_AND_LATENCY: {frozenset({"memory_bytes", "latency_ms"})},
    }
    assert all(("device" in body) == (kind is Asked.MEMORY_AND_LATENCY) for kind in asked for body in asked[kind])
    assert all(body["space"] == "all" and body["method"] == "lop" for bodies in asked.values() for body in bodies)


def test_the_landscape_knows_neighbours_and_skips(anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, SpaceName.ALL, round_to=4)
    choices = made_up_choices(space, 60)
    assert len(set(choices)) == 60
    assert space.top in choices
    assert made_up_kl(space, space.top) == 0.0
    top = list(space.top)
    losses = [made_up_kl(space, (*top[:3], k, *top[4:])) for k in range(int(space.counts[3]))]
    assert all(a > b for a, b in pairwise(losses))
    assert losses[0] - losses[1] > losses[1] - losses[2]
    both = made_up_kl(space, (*top[:3], 0, 0, *top[5:]))  # a layer's FFN, and the attention after it
    assert both > losses[0] + made_up_kl(space, (*top[:4], 0, *top[5:]))


def test_half_of_the_decoder_goes_in_two_ways(anatomy: ModelAnatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes_speed, "ROUND_TO", 4)
    plans = half_plans(anatomy, "0" * 64)
    removed = {name: plan.achieved.removed[Scope.DECODER] for name, plan in plans.items()}
    assert all(0.5 <= of < 0.56 for of in removed.values()), removed
    architectures = {name: plan.architecture(anatomy) for name, plan in plans.items()}
    assert {site.sublayer for site, _ in architectures[FFN].items} == {Sublayer.FFN}
    assert not plans[FFN].skips
    skipped = {site for site, option in architectures[ALL].items if option == Option(0)}
    assert skipped == {
        Site(1, Sublayer.FFN),
        Site(2, Sublayer.ATTENTION),
        Site(2, Sublayer.FFN),
        Site(3, Sublayer.ATTENTION),
    }


def test_speeds_are_compared_within_a_turn() -> None:
    speeds = {DENSE: (10.0, 1.0), FFN: (15.0, 2.0), ALL: (20.0, 3.0)}
    rows = [
        {"model": name, "turn": turn, "prefill_tokens_per_s": pace * a, "decode_tokens_per_s": pace * b}
        for turn, pace in enumerate((1.0, 0.2, 5.0))  # the machine's own
        for name, (a, b) in speeds.items()
    ]
    figures = speed_figures(rows)
    assert figures["speed_prefill_ffn_over_dense"] == pytest.approx(1.5)
    assert figures["speed_decode_all_over_dense"] == pytest.approx(3.0)
    assert figures["speed_decode_all_over_ffn"] == pytest.approx(1.5)
    assert figures["speed_prefill_dense_tokens_per_s"] == 10.0


def test_one_model_is_measured(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / DENSE)
    found = measure_model(folder, 6, 3)
    assert min(found["prefill_tokens_per_s"], found["decode_tokens_per_s"]) > 0
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 0 < found["weight_bytes_a_token"] < weights


def test_a_family_that_a_suite_leaves_out_is_not_green(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(SUITES)
    rows = [
        {"family": "llama", "tests": 9, "suites": whole, "green": True},
        {"family": "phi", "tests": 6, "suites": whole - 1, "green": True},
        {"family": "gemma2", "tests": 9, "suites": whole, "green": False},
    ]
    monkeypatch.setattr(axes_families, "family_rows", lambda: rows)
    found = axes_families.families_joint()
    assert (found["families"], found["families_green_joint"], found["families_red_joint"]) == (3, 1, 2)
    assert found["families_not_green"] == ["phi", "gemma2"]
