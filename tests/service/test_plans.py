import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from pruning.planning.plan import PruningPlan
from service.app import create_app
from service.settings import Settings
from storage.contract import Repository
from tests.service.made_up import WIDTHS, made_up_anatomy, register_model, widths_of

# 320 FFN channels of 48 parameters; decoder layers hold 800 parameters besides, embeddings and head 3,200.
FFN = 320 * 48
DECODER = FFN + 4 * 800
MODEL = DECODER + 3200


def test_anatomy_of_these_tests_is_as_worked_out_here() -> None:
    anatomy = made_up_anatomy()
    assert (anatomy.ffn_parameters, anatomy.decoder_parameters, anatomy.total_parameters) == (FFN, DECODER, MODEL)


def test_half_of_the_ffn_is_half_of_every_layer(client: TestClient) -> None:
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5})
    assert answer.status_code == 201
    plan = PruningPlan.from_json(answer.content)
    assert widths_of(plan) == [32, 32, 64, 32]
    assert plan.method == "uniform"
    assert plan.achieved.removed == {"ffn": 0.5, "decoder": FFN / 2 / DECODER, "model": FFN / 2 / MODEL}
    assert plan.achieved.parameters == MODEL - FFN // 2
    assert (plan.target.sparsity, plan.target.scope, plan.target.device) == (0.5, "ffn", None)
    assert (plan.target.budget, plan.target.round_to, plan.target.tp_size) == (None, 8, 1)
    assert plan.provenance.note == (
        "FFN widths are multiples of 8; lop: no predictor is trained for this model; "
        "mcts: no search is finished within one level step of this target; "
        "additive-dp: no complete one-layer sensitivity scan is stored"
    )
    assert plan.ranking.url == "/v1/models/tiny/ranking"
    assert client.get(plan.ranking.url).headers["etag"] == f'"{plan.ranking.sha256}"'


def test_an_equal_request_gets_the_same_bytes_and_the_plan_stays_readable(client: TestClient) -> None:
    first = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.25})
    again = client.post("/v1/plans", json={"scope": "ffn", "round_to": 8, "sparsity": 0.250, "model": "tiny"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    location = first.headers["location"]
    assert location == again.headers["location"] == f"/v1/plans/{first.json()['plan_id']}"
    read = client.get(location)
    assert (read.status_code, read.content) == (200, first.content)
    unchanged = client.get(location, headers={"If-None-Match": read.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_both_zeros_and_the_whole_number_are_one_request(client: TestClient) -> None:
    answers = [
        client.post("/v1/plans", content=f'{{"model": "tiny", "sparsity": {zero}}}', headers={"Content-Type": json})
        for zero, json in [("0", "application/json"), ("-0.0", "application/json; charset=utf-8"), ("0.0", "text/json")]
    ]
    assert [a.status_code for a in answers] == [201, 201, 415]
    assert answers[0].content == answers[1].content
    assert widths_of(PruningPlan.from_json(answers[0].content)) == list(WIDTHS)


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": 0.26},
        {"round_to": 16},
        {"tp_size": 2},
        {"scope": "decoder"},
        {"device": "l4"},
        {"method": "uniform"},
    ],
)
def test_whatever_the_request_says_makes_another_plan(client: TestClient, change: dict[str, object]) -> None:
    base = {"model": "tiny", "sparsity": 0.25}
    first = client.post("/v1/plans", json=base).json()
    other = client.post("/v1/plans", json=base | change)
    assert other.status_code == 201
    assert other.json()["plan_id"] != first["plan_id"]


def test_two_models_of_one_anatomy_get_plans_of_their_own(client: TestClient, repository: Repository) -> None:
    register_model(repository, "twin")
    ids = {client.post("/v1/plans", json={"model": m, "sparsity": 0.5}).json()["plan_id"] for m in ("tiny", "twin")}
    assert len(ids) == 2


@pytest.mark.parametrize(("scope", "total"), [("ffn", FFN), ("decoder", DECODER), ("model", MODEL)])
def test_a_plan_never_exceeds_its_target(client: TestClient, scope: str, total: int) -> None:
    for sparsity, round_to in itertools.product((0.0, 0.001, 1 / 3, 0.45), (1, 24, 200)):
        answer = client.post(
            "/v1/plans", json={"model": "tiny", "sparsity": sparsity, "scope": scope, "round_to": round_to}
        )
        if round_to == 200 and sparsity > 0:
            # 200 channels are more than any layer has: nothing can be removed.
            assert (answer.status_code, answer.json()["nearest"]) == (422, 0.0)
            continue
        plan = PruningPlan.from_json(answer.content)
        removed = round(plan.achieved.removed[plan.target.scope] * total)
        assert removed >= sparsity * total - 1e-6
        assert all(w % round_to == 0 or w == dense for w, dense in zip(widths_of(plan), WIDTHS, strict=True))
        # Nothing is given away: one more step of a layer that is not dense would break the budget.
        steps = [min(round_to, d - w) * 48 for w, d in zip(widths_of(plan), WIDTHS, strict=True) if w < d]
        assert not steps or removed - sparsity * total < min(steps)


def test_an_infeasible_target_names_the_nearest_one_which_then_works(client: TestClient) -> None:
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.95, "scope": "ffn"})
    assert answer.status_code == 422
    problem = answer.json()
    # At least 8 of 64, 64, 128 and 64 channels stay: 32 of 320.
    assert problem["nearest"] == 0.9
    assert problem["type"] == "urn:lop:infeasible-target"
    assert problem["values"] == "0.95"
    assert "0.9" in problem["remedy"]
    again = client.post("/v1/plans", json={"model": "tiny", "sparsity": problem["nearest"]})
    assert again.status_code == 201
    assert widths_of(PruningPlan.from_json(again.content)) == [8, 8, 8, 8]


def test_a_device_is_recorded_and_a_plan_that_it_cannot_hold_says_so(
    client: TestClient, repository: Repository
) -> None:
    fits = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "device": "l4"}).json()
    assert fits["target"]["device"] == "l4"
    assert "bytes" not in fits["provenance"]["note"]
    # 8 layers of 3 x 8192 x 65536 float32 parameters: 51 GB dense.
    register_model(repository, "huge", made_up_anatomy((65536,) * 8, hidden=8192, fingerprint="d" * 64))
    plan = client.post("/v1/plans", json={"model": "huge", "sparsity": 0.25, "device": "l4"}).json()
    needed = plan["achieved"]["memory_bytes"]
    assert needed > 24 * 2**30
    note = plan["provenance"]["note"]
    assert note.endswith(f"weights, KV cache and activations need {needed} bytes, l4 has {24 * 2**30}")


def test_racing_equal_requests_get_one_plan(settings: Settings, repository: Repository) -> None:
    with TestClient(create_app(settings)) as client, ThreadPoolExecutor(8) as pool:
        request = {"model": "tiny", "sparsity": 0.375}
        answers = list(pool.map(lambda _: client.post("/v1/plans", json=request), range(16)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.content for a in answers}) == 1
    assert len({a.headers["location"] for a in answers}) == 1


def test_several_processes_sharing_a_database_agree(settings: Settings, repository: Repository) -> None:
    with (
        TestClient(create_app(settings)) as one,
        TestClient(create_app(settings)) as two,
        ThreadPoolExecutor(8) as pool,
    ):
        request = {"model": "tiny", "sparsity": 0.125}
        clients = [one, two] * 8
        answers = list(pool.map(lambda c: c.post("/v1/plans", json=request), clients))
    assert len({a.content for a in answers}) == 1


def test_the_plan_names_its_costs_exactly(client: TestClient) -> None:
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "scope": "model"}).json()
    achieved = plan["achieved"]
    kept = sum(layer["ffn_width"] for layer in plan["layers"])
    # 10,880 of 21,760 parameters go: 226.67 channels, so at most 93 stay, in steps of 8.
    assert kept <= 320 - math.ceil(MODEL / 2 / 48)
    assert achieved["parameters"] == MODEL - (320 - kept) * 48
    assert achieved["kv_cache_bytes"] == (1024 + 128) * 4 * 2 * 2 * 4 * 4
    # 1024 positions of 2 x 16 hidden, 4 x 16 attention and 3 x 128 FFN values, and the logits of the last one.
    assert achieved["activation_bytes"] == 4 * 1024 * (32 + 64 + 384) + 4 * 100
    weights = achieved["parameters"] * 4
    assert achieved["memory_bytes"] == weights + achieved["kv_cache_bytes"] + achieved["activation_bytes"]
