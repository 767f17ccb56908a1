"""The truth benchmark on a tiny model: that it finds nothing in good plans, and everything in bad ones."""

from pathlib import Path

import pytest

from benchmarks.built_costs import build_on_meta, count_costs
from benchmarks.truth import LIMITS, RequestMaker, check_plan, measure_truth
from benchmarks.truth_subjects import TruthSubject, register_large
from lop.registration import register_model
from pruning.conversations import load_conversations
from pruning.plan import Budget, PruningPlan
from service.methods.names import Method
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint, write_conversations

WORKLOAD = {"batch": 2, "prompt_tokens": 33, "output_tokens": 5}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "model")


@pytest.fixture
def url(tmp_path: Path, source: Path) -> str:
    """A database that knows the tiny model."""
    url = f"sqlite:///{tmp_path / 'truth.db'}"
    with open_repository(url, create=True) as repository:
        register_model(repository, "tiny", source, load_conversations(write_conversations(tmp_path / "data")))
    return url


def planner_over(repository: Repository) -> Planner:
    return Planner(repository, PredictorCache(repository, capacity=1))


def test_random_requests_are_feasible_and_their_plans_hold(url: str, source: Path) -> None:
    subject = TruthSubject("tiny", source, 1.0, is_whole=True)
    rows, summary = measure_truth(url, [subject], num_requests=12, num_saved=3, processes=1)
    assert summary["requests"] == sum(row["requests"] for row in rows) == 12
    assert (summary["budget_violations"], summary["cost_errors"], summary["disk_bytes_error"]) == (0, 0, 0)
    assert summary["saved_plans"] == 3
    assert summary["violations"] == []
    assert 0.5 < summary["mean_use_of_tightest_limit"] <= 1


def test_requests_cover_every_kind_and_are_those_of_their_seed(url: str) -> None:
    with open_repository(url) as repository:
        anatomy = repository.get_model("tiny").anatomy
        planner = planner_over(repository)
        maker = RequestMaker(anatomy, "tiny", 1)
        requests = [maker.make() for _ in range(80)]
        assert requests[:5] == [other.make() for other in [RequestMaker(anatomy, "tiny", 1)] for _ in range(5)]
        for request in requests:
            assert planner.plan(request.model_copy(update={"method": None})).layers
    assert {x.tp_size for x in requests} == {1, 2}
    assert {x.scope for x in requests} == {"ffn", "decoder", "model"}
    assert len({x.device for x in requests}) > 10
    budgets = [x.budget for x in requests if x.budget is not None]
    assert {sum(getattr(x, name) is not None for name in LIMITS) for x in budgets} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("method", [Method.UNIFORM, Method.FLAP])
def test_a_model_that_was_built_costs_what_its_plan_says(
    url: str, source: Path, tmp_path: Path, method: Method
) -> None:
    request = PlanRequest(
        model="tiny", budget=Budget(flops=10**8, memory_bytes=360_000, **WORKLOAD), device="l4", method=method
    )
    with open_repository(url) as repository:
        anatomy = repository.get_model("tiny").anatomy
        plan = planner_over(repository).plan(request)
    model = build_on_meta(source, plan, "F32", tmp_path)
    assert {x.device.type for x in model.parameters()} == {"meta"}
    checked = check_plan(request, plan, anatomy, source, tmp_path)
    assert (checked.exceeded, checked.differing) == ((), ())
    assert checked.asked == "memory_bytes+flops"

    # A plan of another budget, or one that lies about any of its costs, is found out.
    for name, most in {"memory_bytes": 330_000, "flops": 10**6, "disk_bytes": 60_000, "latency_ms": 1e-4}.items():
        less = request.model_copy(update={"budget": Budget(**{name: most}, **WORKLOAD)})
        assert name in check_plan(less, plan, anatomy, source, tmp_path).exceeded
        said = plan.achieved.model_copy(update={name: getattr(plan.achieved, name) * 2})
        liar = plan.model_copy(update={"achieved": said})
        assert check_plan(request, liar, anatomy, source, tmp_path).differing == (name,)
    odd = request.model_copy(update={"tp_size": 16, "round_to": 16})
    assert set(check_plan(odd, plan, anatomy, source, tmp_path).exceeded) & {"tp_size", "round_to"}
    sparse = PlanRequest(model="tiny", sparsity=0.99)
    assert check_plan(sparse, plan, anatomy, source, tmp_path).exceeded == ("sparsity",)


def test_a_model_with_other_tensors_than_the_plans_is_refused(url: str, source: Path, tmp_path: Path) -> None:
    with open_repository(url) as repository:
        anatomy = repository.get_model("tiny").anatomy
        plan = planner_over(repository).plan(PlanRequest(model="tiny", sparsity=0.5))
    model = build_on_meta(source, plan, "F32", tmp_path)
    layer = plan.layers[0].model_copy(update={"ffn_width": plan.layers[0].ffn_width - 8})
    other: PruningPlan = plan.model_copy(update={"layers": (layer, *plan.layers[1:])})
    with pytest.raises(ValueError, match="hold other tensors"):
        count_costs(model, other, anatomy, None)


def test_the_large_model_is_planned_by_its_config_alone(tmp_path: Path) -> None:
    with open_repository(f"sqlite:///{tmp_path / 'large.db'}", create=True) as repository:
        subject = register_large(repository, tmp_path / "large")
        anatomy = repository.get_model(subject.model_id).anatomy
        assert (anatomy.num_layers, anatomy.dtype) == (32, "F16")
        assert anatomy.total_parameters == pytest.approx(7.06e9, rel=0.01)
        request = PlanRequest(model=subject.model_id, device="jetson-orin-nano-8gb", round_to=64)
        plan = planner_over(repository).plan(request)
    checked = check_plan(request, plan, anatomy, subject.source, tmp_path)
    assert (checked.asked, checked.exceeded, checked.differing) == ("device", (), ())
    assert 0.99 < (checked.used or 0) <= 1
