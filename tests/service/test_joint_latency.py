"""Latency budgets where attention and skips may change, too: over HTTP, on data sheets and on measured devices."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.devices.latency import latency_model
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName, fine_space
from pruning.planning.make_plan import exceeded_limits
from pruning.planning.plan import PruningPlan
from pruning.planning.prices import LatencyPrice, flops
from pruning.planning.ranking import Ranking
from pruning.planning.workload import Workload
from service.devices import find_device
from storage.contract import Repository
from storage.records import BINARY, DeviceRecord, ModelRecord
from tests.pruning.made_up_devices import made_up_profile
from tests.service.made_up import NOW
from tests.service.test_errors import problem_of
from tests.tiny_models import tiny_model

WORKLOAD = {"prompt_tokens": 12, "output_tokens": 4}
NEW, OLD = "bench", "old-bench"


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    return anatomy_of(tiny_model())


@pytest.fixture(autouse=True)
def _known(repository: Repository, anatomy: ModelAnatomy) -> None:
    """A model whose ranking orders KV groups, and two devices, of which one was measured before attention was."""
    channels = tuple(np.arange(x.ffn_width, dtype=np.int32) for x in anatomy.layers)
    groups = tuple(np.arange(x.num_kv_groups, dtype=np.int32) for x in anatomy.layers)
    ranking = Ranking(channels, anatomy.fingerprint, kv_groups=groups)
    sha256 = repository.put_artifact(ranking.to_bytes(), BINARY)
    repository.add_model(ModelRecord("joint", anatomy, "0" * 64, sha256, "/nowhere", NOW))
    for name in (NEW, OLD):
        profile = made_up_profile(name, anatomy=anatomy, attention=name == NEW)
        repository.add_device(DeviceRecord(profile, NOW))


def request(space: SpaceName, device: str, latency_ms: float, **more: float) -> dict[str, Any]:
    budget = {"latency_ms": latency_ms, **more, **WORKLOAD}
    return {"model": "joint", "space": space.value, "device": device, "budget": budget}


def price_on(repository: Repository, anatomy: ModelAnatomy, device: str) -> LatencyPrice:
    return LatencyPrice(anatomy, latency_model(find_device(repository, device), anatomy, Workload(**WORKLOAD)))


@pytest.mark.parametrize("device", [NEW, "raspberry-pi-5-8gb"])
@pytest.mark.parametrize("space", SPACES_OF_UNITS)
def test_a_plan_keeps_to_its_latency_and_a_floor_is_told(
    client: TestClient, repository: Repository, anatomy: ModelAnatomy, space: SpaceName, device: str
) -> None:
    price = price_on(repository, anatomy, device)
    problem = problem_of(client.post("/v1/plans", json=request(space, device, 1e-6)), 422)
    assert problem["type"] == "urn:lop:infeasible-target"
    nearest = problem["nearest_values"]
    assert isinstance(nearest, dict)
    least = nearest["latency_ms"]
    dense = price.total / 1e6
    assert problem["binding"] == "latency_ms"
    assert 0 < least < dense
    for latency_ms in (least, (least + dense) / 2):
        answer = client.post("/v1/plans", json=request(space, device, latency_ms))
        assert answer.status_code == 201, answer.text
        plan = PruningPlan.from_json(answer.content)
        architecture = plan.architecture(anatomy)
        assert plan.achieved.latency_ms == price.cost(architecture) / 1e6
        assert exceeded_limits(plan.target, plan.achieved) == []
        assert plan.achieved.latency_source == ("measured" if device == NEW else "roofline")
        assert architecture.items
    # Just below the floor, and together with another limit that is none.
    below = client.post("/v1/plans", json=request(space, device, least - 1e-3, flops=10**15))
    assert problem_of(below, 422)["nearest_values"] == {
        "latency_ms": least,
        "memory_bytes": 8 * 2**30,
        "flops": 10**15,
    }


@pytest.mark.parametrize("space", [SpaceName.ATTENTION, SpaceName.LAYERS, SpaceName.ALL])
def test_a_device_from_before_attention_was_timed_refuses_budgets_it_cannot_price(
    client: TestClient, anatomy: ModelAnatomy, space: SpaceName
) -> None:
    problem = problem_of(client.post("/v1/plans", json=request(space, OLD, 60.0)), 422)
    assert "needs a profile that times them" in str(problem["rule"])
    assert OLD in str(problem["values"])
    assert f"lop device profile {OLD} --model ID" in str(problem["remedy"])
    # What limits no time is answered, and says that there is none; what changes FFN widths alone is as it was.
    operations, allowed = flops(anatomy, Workload(**WORKLOAD)), fine_space(anatomy, space, round_to=8)
    most = (operations.cost(allowed.architecture(allowed.bottom)) + operations.total) // 2
    untimed = request(space, OLD, 1.0) | {"budget": {"flops": most, **WORKLOAD}}
    plan = client.post("/v1/plans", json=untimed).json()
    assert plan["achieved"]["flops"] <= most
    assert plan["achieved"].get("latency_ms") is None
    assert "with whole attention only: none is known of this plan" in plan["provenance"]["note"]
    widths = client.post("/v1/plans", json=request(SpaceName.FFN, OLD, 60.0)).json()
    same = client.post("/v1/plans", json=request(SpaceName.FFN, NEW, 60.0)).json()
    assert widths["layers"] == same["layers"]
    assert widths["achieved"]["latency_ms"] == pytest.approx(same["achieved"]["latency_ms"], abs=1e-3)
