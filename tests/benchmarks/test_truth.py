"""The truth benchmark on a tiny model: that it finds nothing in good plans, and everything in bad ones."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from benchmarks.built_activations import peak_bytes, workload_of
from benchmarks.built_costs import build_on_meta, count_costs
from benchmarks.built_files import file_bytes, write_hollow_files
from benchmarks.built_latency import _between
from benchmarks.truth import RequestMaker, measure_truth
from benchmarks.truth_checks import LIMITS, check_plan
from benchmarks.truth_subjects import TruthSubject, register_large
from lop.workflows.profiling import TimedModel
from lop.workflows.registration import register_model
from pruning.allocators.methods import Method
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.data.conversations import load_conversations
from pruning.devices.catalogue import DEVICES
from pruning.planning.cost import kv_cache_bytes
from pruning.planning.make_plan import exceeded_limits
from pruning.planning.plan import Kept, PlanLayer
from pruning.planning.workload import Budget
from service.devices import find_device
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import DeviceRecord
from storage.sql_repository import open_repository
from tests.pruning.made_up_devices import made_up_profile
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


def test_random_requests_are_feasible_and_their_plans_hold(url: str, source: Path, quick_processes: None) -> None:
    subject = TruthSubject("tiny", source, 1.0, is_whole=True)
    with open_repository(url) as repository:
        anatomy = repository.get_model("tiny").anatomy
        repository.add_device(DeviceRecord(made_up_profile("bench", anatomy=anatomy), datetime.now(UTC)))
    rows, summary = measure_truth(url, [subject], num_requests=12, num_saved=3, processes=1)
    assert summary["requests"] == sum(row["requests"] for row in rows) == 12
    assert (summary["budget_violations"], summary["cost_errors"], summary["disk_bytes_error"]) == (0, 0, 0)
    assert summary["saved_plans"] == 3
    assert summary["memory_bounds_exceeded"] == 0
    assert 0 < summary["most_memory_used"] <= 1
    assert summary["violations"] == []
    assert 1 < summary["devices"] <= len(DEVICES)
    assert summary["measured"] == 1
    assert 0.5 < summary["mean_use_of_tightest_limit"] <= 1


def test_requests_cover_every_kind_and_are_those_of_their_seed(url: str) -> None:
    with open_repository(url) as repository:
        anatomy = repository.get_model("tiny").anatomy
        planner = planner_over(repository)
        maker = RequestMaker(anatomy, "tiny", 1)
        requests = [maker.make() for _ in range(80)]
        assert requests[:5] == [other.make() for other in [RequestMaker(anatomy, "tiny", 1)] for _ in range(5)]
        for request in requests:
            plan = planner.plan(request.model_copy(update={"method": None}))
            assert exceeded_limits(plan.target, plan.achieved) == []
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
    model = build_on_meta(source, plan, anatomy, tmp_path)
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


def test_files_are_as_long_as_transformers_writes_them(source: Path, tmp_path: Path) -> None:
    model = load_model(source)
    assert file_bytes(model) == (source / "model.safetensors").stat().st_size
    model.save_pretrained(tmp_path / "saved")
    assert file_bytes(model) == (tmp_path / "saved" / "model.safetensors").stat().st_size
    (tmp_path / "hollow").mkdir()
    write_hollow_files(model, tmp_path / "hollow")
    (tmp_path / "hollow" / "config.json").write_bytes((source / "config.json").read_bytes())
    hollow, whole = (tmp_path / "hollow" / "model.safetensors", source / "model.safetensors")
    assert hollow.stat().st_size == whole.stat().st_size
    assert read_anatomy(tmp_path / "hollow").tensors == read_anatomy(source).tensors
    size = int.from_bytes(whole.read_bytes()[:8], "little")
    assert hollow.read_bytes()[: 8 + size] == whole.read_bytes()[: 8 + size]


def test_latency_is_what_the_tables_say_by_hand() -> None:
    assert _between((8, 16, 32), (1.0, 3.0, 4.0), 12) == 2.0
    assert _between((8, 16, 32), (1.0, 3.0, 4.0), 24) == 3.5
    assert _between((8, 16, 32), (1.0, 3.0, 4.0), 4) == 1.0
    assert _between((8, 16, 32), (1.0, 3.0, 4.0), 40) == 4.0


def test_a_measured_device_is_priced_by_its_tables(url: str, source: Path, tmp_path: Path) -> None:
    with open_repository(url) as repository:
        anatomy = repository.get_model("tiny").anatomy
        repository.add_device(DeviceRecord(made_up_profile("bench", anatomy=anatomy), datetime.now(UTC)))
        device = find_device(repository, "bench")
        maker = RequestMaker(anatomy, "tiny", 3, (device,))
        requests = [maker.make() for _ in range(30)]
        inside = PlanRequest(
            model="tiny", device="bench", budget=Budget(latency_ms=80.0, batch=1, prompt_tokens=15, output_tokens=8)
        )
        plan = planner_over(repository).plan(inside)
    assert {x.device for x in requests} == {None, "bench"}
    assert any(x.budget is not None and 10 <= x.budget.prompt_tokens <= 20 for x in requests)
    checked = check_plan(inside, plan, anatomy, source, tmp_path, devices={"bench": device})
    assert (checked.exceeded, checked.differing, checked.is_measured) == ((), (), True)
    layers = sum(
        1.5 * (1 + 2 * (w - 8) / (16 - 8) / 2 if w <= 16 else 2 + (w - 16) / 32) for w in plan.ffn_widths(anatomy)
    )
    assert plan.achieved.prefill_ms == pytest.approx(6.0 + 40.0 + layers)
    other = plan.achieved.model_copy(update={"latency_source": "roofline"})
    liar = plan.model_copy(update={"achieved": other})
    assert check_plan(inside, liar, anatomy, source, tmp_path, devices={"bench": device}).differing == ("latency_ms",)


def test_memory_is_watched_while_a_model_answers(source: Path) -> None:
    inputs = TimedModel.of_folder(source).images(batch=2)
    assert inputs is not None
    model = load_model(source)
    taken = peak_bytes(model, inputs, 4)
    cache = kv_cache_bytes(anatomy_of(model), workload_of(inputs, 4))
    assert 0 < cache < taken
    longer = peak_bytes(model, inputs, 12)
    assert longer >= taken
    twice = {name: torch.cat([x, x]) for name, x in inputs.items()}
    assert peak_bytes(model, twice, 4) > 1.5 * taken


def test_a_model_with_other_tensors_than_the_plans_is_refused(url: str, source: Path, tmp_path: Path) -> None:
    with open_repository(url) as repository:
        anatomy = repository.get_model("tiny").anatomy
        plan = planner_over(repository).plan(PlanRequest(model="tiny", sparsity=0.5))
    model = build_on_meta(source, plan, anatomy, tmp_path)
    narrower = Kept(units=plan.ffn_widths(anatomy)[0] - 8)
    layer = PlanLayer(index=0, ffn=narrower)
    other = plan.model_copy(update={"layers": (layer, *(x for x in plan.layers if x.index > 0))})
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

    # Of billions of bytes or operations, one is too many; of a latency, what a sum in floating point may be off.
    workload = {"prompt_tokens": 64, "output_tokens": 8}
    most = Budget(disk_bytes=2**40, memory_bytes=2**40, flops=2**60, latency_ms=1e9, **workload)
    request = PlanRequest(model=subject.model_id, device="a100-80gb", budget=most, round_to=64)
    with open_repository(f"sqlite:///{tmp_path / 'large.db'}") as repository:
        plan = planner_over(repository).plan(request)

    def exceeded(**limits: float) -> tuple[str, ...]:
        asked = request.model_copy(update={"budget": Budget.model_validate(limits | workload)})
        return check_plan(asked, plan, anatomy, subject.source, tmp_path).exceeded

    costs = plan.achieved
    assert costs.latency_ms is not None
    for name in ("disk_bytes", "memory_bytes", "flops"):
        cost = getattr(costs, name)
        assert cost > 2e9
        assert exceeded(**{name: cost}) == ()
        assert exceeded(**{name: cost - 1}) == (name,)
    assert exceeded(latency_ms=costs.latency_ms) == ()
    assert exceeded(latency_ms=costs.latency_ms * (1 - 1e-5)) == ("latency_ms",)
