"""Methods that decide from stored statistics, over HTTP."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from mcts.settings import SearchMethod
from pruning.allocators.methods import BEST_FIRST, Family, Method
from pruning.allocators.registry import STATISTICAL_ALLOCATORS
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import Limits
from pruning.planning.plan import PruningPlan
from pruning.planning.prices import ffn_parameters
from pruning.planning.ranking import Ranking
from storage.contract import Repository
from storage.records import BINARY, StatisticsRecord
from tests.service.made_up import NOW, add_calibration, add_statistics, made_up_anatomy, made_up_statistics, widths_of

OWN_RANKING = {"wanda-sp", "flap", "llm-pruner"}
SEARCHED = {"mcts", "evolution", "random"}


@pytest.fixture
def measured(repository: Repository) -> Repository:
    """Statistics of every kind are stored for "tiny"."""
    add_calibration(repository)
    for kind in StatisticsKind:
        add_statistics(repository, repository.get_model("tiny"), kind)
    return repository


def ask(client: TestClient, method: str, sparsity: float = 0.5, **more: Any) -> PruningPlan:
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": sparsity, "method": method, **more})
    assert answer.status_code == 201, answer.text
    return PruningPlan.from_json(answer.content)


def test_the_methods_are_the_chain_the_allocators_and_the_searches() -> None:
    assert set(Method) == set(BEST_FIRST) | set(STATISTICAL_ALLOCATORS) | SEARCHED
    assert {method.family for method in map(Method, SEARCHED)} == {Family.SEARCH}
    assert set(SearchMethod) == SEARCHED


@pytest.mark.parametrize("method", STATISTICAL_ALLOCATORS)
@pytest.mark.parametrize(("sparsity", "scope", "round_to"), [(0.5, "ffn", 8), (0.3, "model", 4), (0.7, "decoder", 1)])
def test_the_plan_is_the_allocators_within_its_target(
    client: TestClient, measured: Repository, method: str, sparsity: float, scope: str, round_to: int
) -> None:
    plan = ask(client, method, sparsity, scope=scope, round_to=round_to)
    assert plan.method == method
    assert plan.achieved.removed[plan.target.scope] >= sparsity - 1e-9
    anatomy = made_up_anatomy()
    removed = round(plan.achieved.removed[plan.target.scope] * total_of(scope))
    budget = anatomy.ffn_parameters - int(np.ceil(sparsity * total_of(scope) - 1e-6))
    allocator = STATISTICAL_ALLOCATORS[method]
    statistics = made_up_statistics(anatomy, allocator.kind)
    space = ffn_widths(anatomy, round_to=round_to)
    price = ffn_parameters(anatomy, compensates=allocator.compensates)
    expected = allocator.allocate(anatomy, statistics, Limits(space, (price.limit(space, budget),)))
    assert plan.architecture(anatomy) == expected.architecture
    # A bias of D parameters is dearer than no bias, and no step is left over: 3 D a channel.
    assert removed - sparsity * total_of(scope) < (round_to * 3 + 1) * anatomy.hidden_size
    assert plan.provenance.calibration == "c" * 64
    assert (plan.provenance.samples, plan.predicted) == (0, None)


def total_of(scope: str) -> int:
    anatomy = made_up_anatomy()
    return {"ffn": anatomy.ffn_parameters, "decoder": anatomy.decoder_parameters, "model": anatomy.total_parameters}[
        scope
    ]


@pytest.mark.parametrize("method", STATISTICAL_ALLOCATORS)
def test_the_ranking_that_the_plan_names_is_the_one_to_download(
    client: TestClient, measured: Repository, method: str
) -> None:
    plan = ask(client, method)
    model = measured.get_model("tiny")
    assert plan.compensates == (method == "flap")
    if method not in OWN_RANKING:
        assert (plan.ranking.sha256, plan.ranking.url) == (model.ranking_sha256, "/v1/models/tiny/ranking")
        assert plan.provenance.note == "FFN widths are multiples of 8"
        return
    assert plan.ranking.url == f"/v1/rankings/{plan.ranking.sha256}"
    answer = client.get(plan.ranking.url)
    assert answer.status_code == 200
    ranking = Ranking.from_bytes(answer.content)
    ranking.check(model.anatomy)
    assert ranking.sha256 == plan.ranking.sha256 != model.ranking_sha256
    assert (ranking.ffn_means is not None) == plan.compensates
    note = f"FFN widths are multiples of 8; {method} ranks the channels of a layer in its own way"
    if method == "flap":
        note += "; down projections that are cut get a bias for what they lose"
    assert plan.provenance.note == note


def test_the_bias_is_in_the_costs(client: TestClient, measured: Repository) -> None:
    plan, anatomy = ask(client, "flap"), made_up_anatomy()
    cut = [(w, x) for w, x in zip(widths_of(plan), anatomy.layers, strict=True) if w < x.ffn_width]
    removed = sum((x.ffn_width - w) * 48 for w, x in cut) - len(cut) * anatomy.hidden_size
    assert cut
    assert plan.achieved.parameters == anatomy.total_parameters - removed
    assert removed >= anatomy.ffn_parameters // 2


def test_a_method_without_its_statistics_names_the_command(client: TestClient, repository: Repository) -> None:
    for method, allocator in STATISTICAL_ALLOCATORS.items():
        answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": method})
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (422, "urn:lop:invalid-input")
        assert problem["rule"] == f"method '{method}' needs statistics of kind '{allocator.kind}'"
        assert problem["values"] == "model 'tiny' has none"
        assert f"`lop model measure tiny --data FILE --kind {allocator.kind}`" in problem["remedy"]


def test_statistics_do_not_change_what_is_answered_by_default(client: TestClient, measured: Repository) -> None:
    plan = PruningPlan.from_json(client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).content)
    assert plan.method == "uniform"
    assert plan.provenance.note is not None
    assert plan.provenance.note.startswith("FFN widths are multiples of 8; lop: no predictor")


def test_newer_statistics_make_a_new_plan_and_the_old_one_stays(client: TestClient, measured: Repository) -> None:
    before = ask(client, "owl")
    assert ask(client, "owl") == before
    other = add_calibration(measured, "d" * 64)
    add_statistics(
        measured,
        measured.get_model("tiny"),
        StatisticsKind.ACTIVATIONS,
        calibration_id=other,
        created_at=NOW + timedelta(days=1),
        seed=1,
    )
    after = ask(client, "owl")
    assert (before.provenance.calibration, after.provenance.calibration) == ("c" * 64, "d" * 64)
    assert PruningPlan.from_json(client.get(f"/v1/plans/{before.plan_id}").content) == before


def test_a_target_out_of_reach_names_one_that_works(client: TestClient, measured: Repository) -> None:
    # 8 channels of each layer are 0.9 of the FFN removed, but the biases of FLAP need room too.
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.9, "method": "flap"})
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "urn:lop:infeasible-target")
    assert problem["nearest"] == pytest.approx(0.9 - 4 * 16 / 15360, abs=1e-6)
    assert widths_of(ask(client, "flap", problem["nearest"])) == [8, 8, 8, 8]


def test_damaged_statistics_are_the_servers_fault(client: TestClient, repository: Repository) -> None:
    add_calibration(repository)
    sha256 = repository.put_artifact(b"no statistics", BINARY)
    repository.add_statistics(StatisticsRecord("tiny", "activations", "c" * 64, sha256, NOW))
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "owl"})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:lop:storage")
    assert "lop model measure" in answer.json()["remedy"]


def test_statistics_of_another_model_are_a_conflict(client: TestClient, repository: Repository) -> None:
    add_calibration(repository)
    foreign = made_up_statistics(made_up_anatomy(fingerprint="e" * 64), StatisticsKind.ACTIVATIONS)
    sha256 = repository.put_artifact(foreign.to_bytes(), BINARY)
    repository.add_statistics(StatisticsRecord("tiny", "activations", "c" * 64, sha256, NOW))
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "owl"})
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:lop:fingerprint-mismatch")
