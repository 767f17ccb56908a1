"""The additive program under a limit on bytes and one on latency that climbs in stairs, over HTTP and by trying all."""

import itertools

import pytest
from fastapi.testclient import TestClient

from pruning.devices.latency import latency_model
from pruning.devices.profile import DeviceProfile
from pruning.planning.cost import achieved_costs
from pruning.planning.plan import PruningPlan
from pruning.planning.workload import Workload
from service.devices import find_device
from storage.contract import Repository
from tests.pruning.made_up_devices import made_up_profile
from tests.service.made_up import add_calibration, made_up_anatomy, register_model, scan_samples, widths_of

ANATOMY = made_up_anatomy((32, 32, 32, 32), fingerprint="e" * 64)
WEIGHTS = (0.3, 0.2, 5.0, 0.25)
WORKLOAD = {"batch": 1, "prompt_tokens": 10, "output_tokens": 1}


@pytest.fixture
def _scanned(client: TestClient, repository: Repository) -> None:
    """A model with a dear layer, and a device on which 24 channels take as long as 32, and 16 as 8."""
    model = register_model(repository, "stairs", ANATOMY)
    repository.add_samples(scan_samples(model, add_calibration(repository), WEIGHTS))
    document = made_up_profile("bench", anatomy=ANATOMY).model_dump(mode="json")
    document["layers"][0] |= {
        "ffn_widths": [8, 16, 24, 32],
        "prefill_ms": [[1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 6.0, 6.0]],
        "decode_ms": [[0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.3, 0.3]],
    }
    answer = client.post("/v1/devices", json=DeviceProfile.model_validate(document).model_dump(mode="json"))
    assert answer.status_code == 201, answer.text


@pytest.fixture(scope="module")
def priced() -> dict[tuple[int, ...], tuple[int, float]]:
    """Memory and latency of widths, as far as a test has asked for them: all tests are about the same 256."""
    return {}


@pytest.mark.usefixtures("_scanned")
@pytest.mark.parametrize("channels", [64, 72, 80, 88, 96, 104, 112])
@pytest.mark.parametrize("high", [1, 2, 3])
def test_the_plan_is_the_best_of_all(
    client: TestClient,
    repository: Repository,
    priced: dict[tuple[int, ...], tuple[int, float]],
    channels: int,
    high: int,
) -> None:
    workload = Workload(**WORKLOAD)
    model = latency_model(find_device(repository, "bench"), ANATOMY, workload)

    def costs(widths: tuple[int, ...]) -> tuple[int, float]:
        if widths not in priced:
            achieved = achieved_costs(ANATOMY, ANATOMY.architecture(widths), workload, latency=model)
            assert achieved.latency_ms is not None
            priced[widths] = achieved.memory_bytes, achieved.latency_ms
        return priced[widths]

    memory = costs((channels // 4,) * 4)[0]
    latency = costs((32,) * high + (8,) * (4 - high))[1]
    budget = {**WORKLOAD, "memory_bytes": memory, "latency_ms": latency}
    body = {"model": "stairs", "device": "bench", "method": "additive-dp", "budget": budget}
    answer = client.post("/v1/plans", json=body)
    assert answer.status_code == 201, answer.text
    plan = PruningPlan.from_json(answer.content)

    def lost(widths: tuple[int, ...]) -> float:
        return sum(weight * (1 - width / 32) for weight, width in zip(WEIGHTS, widths, strict=True))

    fitting = [
        widths
        for widths in itertools.product((8, 16, 24, 32), repeat=4)
        if all(a <= b for a, b in zip(costs(widths), (memory, latency), strict=True))
    ]
    assert lost(tuple(widths_of(plan, ANATOMY))) == pytest.approx(min(map(lost, fitting)))
    assert widths_of(plan, ANATOMY)[2] == 32
