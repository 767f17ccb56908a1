"""Hardware budgets over HTTP: what they limit, that nothing exceeds them, and what is said where they cannot be met."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.allocators.methods import BEST_FIRST, Method
from pruning.allocators.registry import STATISTICAL_ALLOCATORS
from pruning.devices.catalogue import DEVICES
from pruning.devices.latency import latency_model
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.cost import achieved_costs
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.make_plan import exceeded_limits
from pruning.planning.plan import PruningPlan
from pruning.planning.workload import Workload
from storage.contract import Repository
from tests.service.made_up import (
    WIDTHS,
    add_calibration,
    add_search,
    add_statistics,
    made_up_anatomy,
    register_model,
    scan_samples,
    widths_of,
)

ANATOMY = made_up_anatomy()
WORKLOAD = {"batch": 2, "prompt_tokens": 50, "output_tokens": 3}
SLOW = "raspberry-pi-5-8gb"
FIELDS = ("memory_bytes", "latency_ms", "flops", "disk_bytes")


def costs(widths: tuple[int, ...] | list[int], *, device: str = SLOW) -> dict[str, Any]:
    """What the four limits count, for `WORKLOAD`."""
    workload = Workload(**WORKLOAD)
    model = latency_model(DEVICES[device], ANATOMY, workload)
    achieved = achieved_costs(ANATOMY, ANATOMY.architecture(widths), workload, latency=model)
    return {name: getattr(achieved, name) for name in FIELDS}


def ask(client: TestClient, budget: dict[str, Any] | None = None, **more: Any) -> PruningPlan:
    body = {"model": "tiny", **more} | ({} if budget is None else {"budget": {**WORKLOAD, **budget}})
    answer = client.post("/v1/plans", json=body)
    assert answer.status_code == 201, answer.text
    return PruningPlan.from_json(answer.content)


def refusal(client: TestClient, status: int = 422, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/plans", json={"model": "tiny", **body})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["rule"]
    assert problem["type"] != "about:blank"
    return problem


@pytest.fixture
def known(repository: Repository) -> None:
    """What every method needs, but for a predictor."""
    model = repository.get_model("tiny")
    repository.add_samples(scan_samples(model, add_calibration(repository), (0.01, 0.25, 0.4, 3.0)))
    for kind in StatisticsKind:
        add_statistics(repository, model, kind)
    for method in ("mcts", "evolution", "random"):
        add_search(repository, (32, 32, 64, 32), 0.1, method=method)


@pytest.mark.parametrize("field", FIELDS)
def test_a_budget_of_half_the_channels_is_answered_with_them(client: TestClient, field: str) -> None:
    half = costs((32, 32, 64, 32))[field]
    # A header's digits are counted at their longest: a step of 8 channels costs 1536 bytes.
    plan = ask(client, {field: half + 300 * (field == "disk_bytes")}, device=SLOW if field == "latency_ms" else None)
    assert widths_of(plan) == [32, 32, 64, 32]
    assert plan.target.budget is not None
    assert plan.target.sparsity is None
    assert plan.achieved.workload == Workload(**WORKLOAD)
    assert getattr(plan.achieved, field) == half
    assert exceeded_limits(plan.target, plan.achieved) == []


def test_several_limits_hold_at_once(client: TestClient) -> None:
    wide, narrow = costs((48, 48, 96, 48)), costs((24, 24, 48, 24))
    for tightest in FIELDS:
        plan = ask(client, {**wide, tightest: narrow[tightest] + 300 * (tightest == "disk_bytes")}, device=SLOW)
        assert exceeded_limits(plan.target, plan.achieved) == []
        assert widths_of(plan) == [24, 24, 48, 24]


def test_latency_says_where_it_comes_from(client: TestClient) -> None:
    plan = ask(client, sparsity=0.5, device="l4")
    assert plan.achieved.latency_source == "roofline"
    assert plan.achieved.latency_ms is not None
    assert plan.achieved.prefill_ms is not None
    assert plan.achieved.decode_ms_per_token is not None
    assert "latency: estimated, not measured: roofline of NVIDIA L4" in str(plan.provenance.note)
    without = ask(client, sparsity=0.5).achieved
    assert (without.latency_ms, without.prefill_ms, without.latency_source) == (None, None, None)


class TestDevices:
    def test_without_sparsity_and_budget_the_memory_of_the_device_is_the_budget(
        self, client: TestClient, repository: Repository
    ) -> None:
        # 32 layers of 3 x 4096 x 14336 float32 parameters: 22.5 GB of FFNs on 8 GiB.
        large = made_up_anatomy((14336,) * 32, hidden=4096, fingerprint="d" * 64)
        register_model(repository, "large", large)
        body = {"model": "large", "device": SLOW, "round_to": 64}
        answer = client.post("/v1/plans", json=body)
        plan = PruningPlan.from_json(answer.content)
        memory = DEVICES[SLOW].memory_bytes
        assert plan.target.budget is not None
        assert plan.target.budget.memory_bytes == memory
        assert memory - 64 * 3 * 4096 * 4 < plan.achieved.memory_bytes <= memory
        # Asking for just that memory on that device is the same request.
        again = client.post("/v1/plans", json={**body, "budget": {"memory_bytes": memory}})
        assert again.content == answer.content
        more = client.post("/v1/plans", json={**body, "budget": {"memory_bytes": memory * 2, "batch": 1}})
        assert more.content == answer.content
        # A larger batch leaves less for weights.
        batch = client.post("/v1/plans", json={**body, "budget": {"batch": 4}}).json()
        assert batch["achieved"]["parameters"] < plan.achieved.parameters
        assert batch["achieved"]["memory_bytes"] <= memory

    def test_with_a_budget_the_devices_memory_is_a_limit_too(self, client: TestClient, repository: Repository) -> None:
        large = made_up_anatomy((14336,) * 32, hidden=4096, fingerprint="d" * 64)
        register_model(repository, "large", large)
        body = {"model": "large", "device": SLOW, "round_to": 64, "budget": {"flops": 10**18}}
        plan = PruningPlan.from_json(client.post("/v1/plans", json=body).content)
        assert plan.achieved.memory_bytes <= DEVICES[SLOW].memory_bytes

    def test_a_device_that_is_too_small_says_so(self, client: TestClient, repository: Repository) -> None:
        huge = made_up_anatomy((65536,) * 32, hidden=16384, fingerprint="d" * 64)
        register_model(repository, "huge", huge)
        bodies: list[dict[str, Any]] = [{}, {"budget": {"memory_bytes": 2**62}}, {"budget": {"flops": 1}}]
        for body in bodies:
            problem = refusal(client, **body, model="huge", device=SLOW, round_to=32768)
            assert problem["type"] == "urn:lop:infeasible-target"
            assert problem["binding"] == "memory_bytes"
            assert problem["nearest_values"]["memory_bytes"] > DEVICES[SLOW].memory_bytes
            assert "Name a device with more memory" in problem["remedy"]
            assert "in the space 'ffn'" in problem["rule"]

    def test_where_a_device_is_too_small_for_one_space_it_says_which_others_fit(
        self, client: TestClient, repository: Repository
    ) -> None:
        huge = made_up_anatomy((65536,) * 32, hidden=16384, fingerprint="d" * 64)
        register_model(repository, "huge", huge)
        problem = refusal(client, model="huge", device=SLOW, round_to=32768)
        spaces = problem["spaces"]
        assert spaces["ffn"] == {"reaches": False} | {x: problem[x] for x in ("nearest", "binding", "nearest_values")}
        assert spaces["all"] == {"reaches": True}
        assert "'all' reaches it" in problem["remedy"]
        assert not spaces["attention"]["reaches"]
        needed = spaces["attention"]["nearest_values"]["memory_bytes"]
        assert f"'attention' needs memory_bytes = {needed}" in problem["remedy"]

    def test_other_devices_make_other_plans(self, client: TestClient) -> None:
        plans = [ask(client, {"memory_bytes": costs(WIDTHS)["memory_bytes"]}, device=d) for d in ("l4", SLOW)]
        assert plans[0].plan_id != plans[1].plan_id
        assert widths_of(plans[0]) == widths_of(plans[1]) == list(WIDTHS)


@pytest.mark.usefixtures("known")
class TestEveryMethod:
    @pytest.mark.parametrize("method", sorted({*BEST_FIRST, *map(Method, STATISTICAL_ALLOCATORS)} - {Method.LOP}))
    @pytest.mark.parametrize("field", FIELDS)
    def test_keeps_the_budget_and_gives_nothing_away(self, client: TestClient, method: Method, field: str) -> None:
        target = costs((32, 40, 72, 32))
        plan = ask(client, {field: target[field]}, device=SLOW, method=method.value)
        assert plan.method == method
        assert exceeded_limits(plan.target, plan.achieved) == []
        compensates = plan.compensates
        for layer, width in enumerate(widths_of(plan)):
            if width < WIDTHS[layer]:
                wider = [w + 8 * (i == layer) for i, w in enumerate(widths_of(plan))]
                workload = Workload(**WORKLOAD)
                model = latency_model(DEVICES[SLOW], ANATOMY, workload)
                more = achieved_costs(
                    ANATOMY, ANATOMY.architecture(wider), workload, compensates=compensates, latency=model
                )
                assert getattr(more, field) > target[field] - 300 * (field == "disk_bytes")

    def test_the_additive_program_is_solved_in_the_units_of_the_limit(self, client: TestClient) -> None:
        half = ask(client, sparsity=0.5, method="additive-dp")
        same = ask(client, {"memory_bytes": costs(widths_of(half))["memory_bytes"]}, method="additive-dp")
        assert widths_of(same) == widths_of(half)
        # Layer 3 is dear, and stays whole.
        assert widths_of(half)[3] == 64

    def test_a_searched_configuration_answers_what_it_nearly_uses_up(self, client: TestClient) -> None:
        near = costs((40, 32, 64, 32))
        plan = ask(client, {"flops": near["flops"]}, method="evolution")
        assert widths_of(plan) in ([40, 32, 64, 32], [32, 40, 64, 32], [32, 32, 72, 32], [32, 32, 64, 40])
        assert plan.predicted is not None
        assert plan.predicted.quality == 0.1
        assert "filled up to this one" in str(plan.provenance.note)
        far = refusal(client, budget={**WORKLOAD, "flops": costs((48, 48, 96, 48))["flops"]}, method="evolution")
        # 240 of 320 channels may stay.
        assert "--method evolution -s 0.25`" in far["remedy"]

    def test_below_the_scans_levels_a_method_names_what_it_can_do(self, client: TestClient) -> None:
        budget = {**WORKLOAD, "memory_bytes": costs((8, 8, 16, 8))["memory_bytes"]}
        plan = PruningPlan.from_json(client.post("/v1/plans", json={"model": "tiny", "budget": budget}).content)
        assert plan.method == "uniform"
        problem = refusal(client, budget=budget, method="additive-dp")
        lowest = costs((16, 16, 32, 16))["memory_bytes"]
        assert (problem["binding"], problem["nearest_values"]) == ("memory_bytes", {"memory_bytes": lowest})
        assert f"Leave `method` out, or ask for at least memory_bytes={lowest}" in problem["remedy"]
        again = ask(client, {"memory_bytes": lowest}, method="additive-dp")
        assert widths_of(again) == [16, 16, 32, 16]


class TestInfeasible:
    def test_the_binding_limit_and_the_nearest_value_of_each_which_then_work(self, client: TestClient) -> None:
        least, dense = costs((8, 8, 8, 8)), costs(WIDTHS)
        asked = {"memory_bytes": 1000, "disk_bytes": least["disk_bytes"] - 1, "flops": dense["flops"]}
        problem = refusal(client, budget={**WORKLOAD, **asked, "latency_ms": 1e-6}, device=SLOW)
        assert problem["type"] == "urn:lop:infeasible-target"
        nearest = problem["nearest_values"]
        assert problem["binding"] == "latency_ms"
        assert problem["nearest"] == nearest["latency_ms"]
        assert (nearest["memory_bytes"], nearest["flops"]) == (least["memory_bytes"], dense["flops"])
        assert nearest["disk_bytes"] == least["disk_bytes"]
        assert problem["spaces"].keys() == {"ffn", "attention", "layers", "all"}
        for space, reach in problem["spaces"].items():
            assert reach["reaches"] is False
            assert reach["nearest_values"].keys() == nearest.keys()
            assert f"'{space}' needs" in problem["remedy"] or space == "ffn"
        assert widths_of(ask(client, nearest, device=SLOW)) == [8, 8, 8, 8]

    @pytest.mark.usefixtures("known")
    def test_files_of_exactly_the_narrowest_widths_by_every_method_that_can(self, client: TestClient) -> None:
        least = costs((8, 8, 8, 8))["disk_bytes"]
        answered = set()
        for method in Method:
            body = {"model": "tiny", "method": method, "budget": {**WORKLOAD, "disk_bytes": least}}
            answer = client.post("/v1/plans", json=body)
            if answer.status_code == 201:
                plan = PruningPlan.from_json(answer.content)
                assert (widths_of(plan), plan.achieved.disk_bytes) == ([8, 8, 8, 8], least)
                answered.add(method)
        assert {Method.UNIFORM, Method.WANDA_SP, Method.LLM_PRUNER} <= answered

    def test_tensor_parallelism_makes_the_smallest_plan_larger(self, client: TestClient) -> None:
        budget = {**WORKLOAD, "memory_bytes": costs((8, 8, 8, 8))["memory_bytes"]}
        assert client.post("/v1/plans", json={"model": "tiny", "budget": budget}).status_code == 201
        problem = refusal(client, budget=budget, tp_size=4, round_to=6)
        assert problem["nearest_values"]["memory_bytes"] == costs((12, 12, 12, 12))["memory_bytes"]


class TestTensorParallelism:
    @pytest.mark.parametrize(("round_to", "tp_size"), list(itertools.product((1, 6, 8, 24), (1, 2, 4))))
    def test_every_width_can_be_shared(self, client: TestClient, round_to: int, tp_size: int) -> None:
        plan = ask(client, {"flops": costs((40, 41, 70, 40))["flops"]}, round_to=round_to, tp_size=tp_size)
        assert (plan.target.round_to, plan.target.tp_size) == (round_to, tp_size)
        space = ffn_widths(ANATOMY, round_to=round_to, tp_size=tp_size)
        for width, dense, row in zip(widths_of(plan), WIDTHS, space.units, strict=True):
            assert width % tp_size == 0
            assert width % round_to == 0 or width == dense
            assert width in row

    @pytest.mark.parametrize("tp_size", [3, 8, 1024])
    def test_heads_that_cannot_be_shared_are_named(self, client: TestClient, tp_size: int) -> None:
        problem = refusal(client, sparsity=0.5, tp_size=tp_size)
        assert problem["type"] == "urn:lop:invalid-input"
        assert "4 heads in 2 KV groups" in problem["values"]
        assert problem["remedy"] == "Ask for a tp_size of 1, 2, 4"


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "ask for a sparsity, for a budget, or name a device"),
    ({"sparsity": 0.5, "budget": {"flops": 10**9}}, "not for both"),
    ({"budget": {}}, "a budget limits something"),
    ({"budget": {"batch": 4}}, "a budget limits something"),
    ({"budget": {"latency_ms": 5.0}}, "latency_ms is a device's"),
    ({"budget": {"flops": 10**9}, "scope": "model"}, "scope says what a sparsity counts"),
    ({"device": "l4", "scope": "model"}, "scope says what a sparsity counts"),
]


@pytest.mark.parametrize(("body", "rule"), CONTRADICTIONS)
def test_a_request_that_contradicts_itself(client: TestClient, body: dict[str, Any], rule: str) -> None:
    problem = refusal(client, **body)
    assert problem["rule"].startswith("body: ")
    assert rule in problem["rule"]


@pytest.mark.parametrize("field", [*FIELDS, "batch", "prompt_tokens", "output_tokens"])
@pytest.mark.parametrize(
    "literal", ["0", "-1", "NaN", "Infinity", "true", '"6"', "[1]", "9223372036854775808", "1e400"]
)
def test_what_is_no_budget_is_named(client: TestClient, field: str, literal: str) -> None:
    if (field, literal) == ("output_tokens", "0"):
        return  # nothing generated: a workload of its own
    body = f'{{"model": "tiny", "device": "l4", "budget": {{"flops": 1000000000, "{field}": {literal}}}}}'
    if field == "flops":
        body = f'{{"model": "tiny", "device": "l4", "budget": {{"flops": {literal}}}}}'
    answer = client.post("/v1/plans", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    if literal != "1e400":
        assert f"body.budget.{field}" in answer.json()["rule"]


@pytest.mark.parametrize("field", ["memory_bytes", "flops", "disk_bytes", "batch"])
def test_a_count_is_whole(client: TestClient, field: str) -> None:
    problem = refusal(client, device="l4", budget={"flops": 10**9, field: 1000000000.0})
    assert f"body.budget.{field}" in problem["rule"]


def test_a_field_that_budgets_do_not_have(client: TestClient) -> None:
    assert "body.budget.memory_gb" in refusal(client, budget={"memory_gb": 4})["rule"]


@pytest.mark.parametrize("output_tokens", [0, 1, 2])
def test_short_answers(client: TestClient, output_tokens: int) -> None:
    plan = ask(client, {"flops": 10**9, "output_tokens": output_tokens}, device="l4")
    assert plan.achieved.workload.output_tokens == output_tokens


def test_a_workload_that_never_ends_is_refused(client: TestClient, repository: Repository) -> None:
    register_model(repository, "huge", made_up_anatomy((65536,) * 32, hidden=16384, fingerprint="d" * 64))
    endless = {"batch": 1024, "prompt_tokens": 2**20, "output_tokens": 2**20}
    problem = refusal(client, model="huge", device=SLOW, budget={**endless, "latency_ms": 1e12})
    assert "smaller" in problem["remedy"]
    problem = refusal(client, model="huge", budget={**endless, "flops": 2**63 - 1})
    assert "smaller" in problem["remedy"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"budget": {**WORKLOAD, "memory_bytes": 300_000, "latency_ms": 5.0}, "device": SLOW},
        lambda: {"budget": {"latency_ms": 5, **WORKLOAD, "memory_bytes": 300_000}, "device": SLOW, "tp_size": 1},
    ],
)
def test_equal_requests_get_the_same_plan(client: TestClient, make: Callable[[], dict[str, Any]]) -> None:
    first = client.post("/v1/plans", json={"model": "tiny", **make()})
    again = client.post("/v1/plans", json={"round_to": 8, "scope": "ffn", "model": "tiny", **make()})
    assert first.status_code == 201, first.text
    assert again.content == first.content


def test_a_device_registered_again_makes_new_plans(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ask(client, sparsity=0.5, device="l4")
    slower = dataclasses.replace(DEVICES["l4"], bandwidth_bytes_per_s=1e9)
    monkeypatch.setitem(DEVICES, "l4", slower)
    after = ask(client, sparsity=0.5, device="l4")
    assert after.plan_id != before.plan_id
    assert after.achieved.latency_ms is not None
    assert before.achieved.latency_ms is not None
    assert after.achieved.latency_ms > before.achieved.latency_ms
