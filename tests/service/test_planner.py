import itertools

import pytest
from fastapi.testclient import TestClient

from pruning.allocators.methods import Method
from pruning.errors import InfeasibleTargetError
from pruning.planning.ffn_spaces import ffn_levels
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from tests.service.made_up import add_calibration, made_up_anatomy, scan_samples, widths_of

# Layer 3 is dear, layer 0 is nearly free.
WEIGHTS = (0.01, 0.25, 0.4, 3.0)


@pytest.fixture
def scanned(repository: Repository) -> str:
    """The calibration set of a complete scan of "tiny"."""
    calibration = add_calibration(repository)
    repository.add_samples(scan_samples(repository.get_model("tiny"), calibration, WEIGHTS))
    return calibration


def planner_over(repository: Repository) -> Planner:
    return Planner(repository, PredictorCache(repository, capacity=2))


def test_a_scan_makes_the_plan_additive_and_optimal(repository: Repository, scanned: str) -> None:
    plan = planner_over(repository).plan(PlanRequest(model="tiny", sparsity=0.5))
    assert plan.method == "additive-dp"
    assert plan.provenance.calibration == scanned
    assert plan.provenance.samples == 12
    assert plan.provenance.note == (
        "FFN widths are multiples of 8; lop: no predictor is trained for this model; "
        "mcts: no search is finished within one level step of this target"
    )
    # By trying all 256 choices of the scan's space.
    rows: list[list[int]] = [row.tolist() for row in ffn_levels(made_up_anatomy(), num_levels=4).units]
    dense = [row[-1] for row in rows]

    def cost(widths: list[int]) -> float:
        return sum(a * (1 - w / d) for a, w, d in zip(WEIGHTS, widths, dense, strict=True))

    fitting = [w for w in itertools.product(*rows) if sum(w) <= 160]
    assert widths_of(plan) == list(min(fitting, key=lambda w: cost(list(w))))
    assert widths_of(plan)[3] == 64
    assert cost(widths_of(plan)) < cost([32, 32, 64, 32])


def test_the_scan_serves_other_roundings_by_repair(repository: Repository, scanned: str) -> None:
    for round_to in (1, 8, 16, 24):
        plan = planner_over(repository).plan(PlanRequest(model="tiny", sparsity=0.4, round_to=round_to))
        assert plan.method == "additive-dp"
        assert all(w % round_to == 0 or w == d for w, d in zip(widths_of(plan), (64, 64, 128, 64), strict=True))
        assert plan.achieved.removed["ffn"] >= 0.4  # type: ignore[index]
        assert widths_of(plan)[3] == 64


def test_below_the_lowest_level_the_next_method_answers_and_says_why(repository: Repository, scanned: str) -> None:
    # The scan's lowest level keeps a quarter; 85% can be removed in steps of 8 channels.
    plan = planner_over(repository).plan(PlanRequest(model="tiny", sparsity=0.85))
    assert plan.method == "uniform"
    assert plan.provenance.note is not None
    assert plan.provenance.note.endswith("additive-dp: this target is outside the widths it was made with")
    assert planner_over(repository).plan(PlanRequest(model="tiny", sparsity=0.85)) == plan


def test_the_method_asked_for_names_the_sparsity_that_it_can_reach(repository: Repository, scanned: str) -> None:
    planner = planner_over(repository)
    with pytest.raises(InfeasibleTargetError) as caught:
        planner.plan(PlanRequest(model="tiny", sparsity=0.85, method=Method.ADDITIVE_DP))
    assert caught.value.nearest == 0.75
    plan = planner.plan(PlanRequest(model="tiny", sparsity=caught.value.nearest, method=Method.ADDITIVE_DP))
    assert widths_of(plan) == [16, 16, 32, 16]


def test_the_best_method_asked_for_by_name_is_the_same_plan(repository: Repository) -> None:
    calibration = add_calibration(repository)
    planner = planner_over(repository)
    before = planner.plan(PlanRequest(model="tiny", sparsity=0.5))
    named = planner.plan(PlanRequest(model="tiny", sparsity=0.5, method=Method.UNIFORM))
    # The fallback says why it is one; who asks for it by name needs no excuse.
    assert named.provenance.note == "FFN widths are multiples of 8"
    assert widths_of(named) == widths_of(before)
    repository.add_samples(scan_samples(repository.get_model("tiny"), calibration, WEIGHTS))
    after = planner.plan(PlanRequest(model="tiny", sparsity=0.5))
    assert after.method == "additive-dp"
    assert repository.get_plan(before.plan_id).plan == before


def test_over_http_the_scan_is_found_too(client: TestClient, repository: Repository, scanned: str) -> None:
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "additive-dp"})
    assert answer.status_code == 201
    assert answer.json()["provenance"]["note"] == "FFN widths are multiples of 8"
    problem = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.85, "method": "additive-dp"})
    assert (problem.status_code, problem.json()["nearest"]) == (422, 0.75)
