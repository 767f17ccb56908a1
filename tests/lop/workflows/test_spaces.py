"""Searches of attention, of whole layers and of everything: within budget, stored with their space, told apart."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.comparing import compare_methods
from lop.workflows.jobs import JobRunner
from lop.workflows.queueing import queue_search
from lop.workflows.searching import record_result, search_model
from lop.workflows.training import searched_budgets, train_model
from lop.workflows.validating import validate
from mcts.result import SearchResult
from mcts.sensitivity import MAX_SCAN_EVALUATIONS
from mcts.settings import SearchMethod, SearchSettings
from mcts.targets import LatencyTargets
from policy_model.training import TrainingSettings
from pruning.allocators.methods import Method
from pruning.anatomy.architecture import Sublayer
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.devices.catalogue import DEVICES
from pruning.devices.latency import latency_model
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.cost import achieved_costs
from pruning.planning.plan import Axis
from pruning.planning.prices import LatencyPrice
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget, Workload
from service.devices import find_device
from service.finished_searches import SearchFinder, searched_space
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from service.worker import WorkerOptions, run_worker
from storage.contract import Repository
from storage.data_store import open_store
from storage.records import BINARY, DeviceRecord
from tests.pruning.made_up_devices import made_up_profile
from tests.service.made_up import NOW

JOINT = SearchSettings(sparsities=(0.3, 0.6), scope=Scope.DECODER, axes=SpaceName.ALL, num_evaluations=10, num_levels=3)


@pytest.fixture
def conversations(data: Path) -> list[Conversation]:
    return load_conversations(data)[:12]


@pytest.mark.parametrize("method", SearchMethod)
@pytest.mark.parametrize(
    ("axes", "sparsities"),
    [(SpaceName.ATTENTION, (0.1,)), (SpaceName.LAYERS, (0.25, 0.5)), (SpaceName.ALL, (0.3, 0.6))],
)
def test_a_search_keeps_to_its_budget_and_changes_what_it_may(
    repository: Repository,
    conversations: list[Conversation],
    axes: SpaceName,
    sparsities: tuple[float, ...],
    method: SearchMethod,
) -> None:
    settings = replace(JOINT, axes=axes, sparsities=sparsities, method=method)
    result = search_model(repository, "tiny", conversations, settings, name="data")
    anatomy = repository.get_model("tiny").anatomy
    (stored,) = repository.list_searches("tiny")
    space = searched_space(stored, anatomy)
    assert space.document() == settings.space(anatomy).document()
    assert result.scan_evaluations <= MAX_SCAN_EVALUATIONS
    for target, sparsity in zip(result.targets, sparsities, strict=True):
        architecture = space.architecture(target.choice)
        removed = anatomy.total_parameters - achieved_costs(anatomy, architecture, Workload()).parameters
        assert removed >= sparsity * anatomy.decoder_parameters - 1e-6
        assert target.metrics.kl > 0.0
        sublayers = {site.sublayer for site, _ in architecture.items}
        assert axes is not SpaceName.ATTENTION or sublayers == {Sublayer.ATTENTION}
        assert axes is not SpaceName.LAYERS or all(option.units == 0 for _, option in architecture.items)


def test_a_search_of_everything_is_validated_and_run_again_it_measures_nothing(
    repository: Repository, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = search_model(repository, "tiny", conversations, JOINT, name="data")
    space = JOINT.space(repository.get_model("tiny").anatomy)
    again = validate(repository, "tiny", conversations, result, calibration=conversations, space=space, name="the same")
    assert again.metrics == tuple(target.metrics for target in result.targets)
    monkeypatch.setattr("lop.workflows.engines.EvaluatorRecipe.__call__", lambda _: pytest.fail("evaluated again"))
    assert search_model(repository, "tiny", conversations, JOINT, name="data") == result


def test_methods_are_compared_where_everything_may_change(
    repository: Repository, conversations: list[Conversation]
) -> None:
    found = compare_methods(
        repository, "tiny", conversations, [0.3], scope=Scope.DECODER, space=SpaceName.ALL, round_to=8
    )
    uniform = next(n for n, plan in enumerate(found.plans) if plan.method == Method.UNIFORM)
    assert found.plans[uniform].achieved_sparsity >= 0.3
    assert found.plans[uniform].kl > 0.0
    assert {site.sublayer for site, _ in found.architectures[uniform].items} == {Sublayer.ATTENTION, Sublayer.FFN}
    assert [plan.method for plan in found.plans] == [Method.UNIFORM, Method.SHORTGPT]
    # Methods of FFN widths alone are not asked at all; what others still need is said.
    asked = [reason.split(" at 0.3: ")[0] for reason in found.missing]
    assert asked == ["lop", "additive-dp", "mcts", "evolution", "random"]


def test_plans_and_predictors_of_ffn_widths_learn_nothing_from_it(
    repository: Repository, conversations: list[Conversation], caplog: pytest.LogCaptureFixture
) -> None:
    of_widths = SearchSettings(sparsities=(0.3, 0.6), num_evaluations=40, num_levels=6)
    search_model(repository, "tiny", conversations, of_widths, name="data")
    known = searched_budgets(repository, "tiny", calibration_id(conversations))
    search_model(repository, "tiny", conversations, replace(JOINT, num_levels=6), name="data")
    assert searched_budgets(repository, "tiny", calibration_id(conversations)) == known
    with caplog.at_level(logging.WARNING, "service.searches"):
        found = SearchFinder(repository).find(repository.get_model("tiny"), Method.MCTS, SpaceName.FFN)
    assert [configuration.label for configuration in found] == ["sparsity 0.3 (ffn)", "sparsity 0.6 (ffn)"]
    assert caplog.text == ""
    # What changes FFN widths alone is a sample of them, whichever search asked for it; what skips an FFN is none.
    quick = TrainingSettings(
        num_levels=6, policy_rounds=1, policy_steps_per_round=1, problems_per_round=8, batch_size=8
    )
    anatomy = repository.get_model("tiny").anatomy
    widths = [anatomy.ffn_widths_alone(sample.architecture) for sample in repository.list_samples("tiny")]
    assert None in widths
    expected = [x for x in widths if x is not None and 0 not in x]
    assert train_model(repository, "tiny", quick).config["info"]["num_samples"] == len(expected)


def test_a_queued_search_of_everything_trains_a_predictor_that_answers_requests(
    repository: Repository, data: Path, tmp_path: Path, short_training: None
) -> None:
    anatomy = repository.get_model("tiny").anatomy
    settings = replace(JOINT, sparsities=(0.3, 0.5), num_evaluations=32, num_levels=2)
    store = open_store(str(tmp_path / "store"))
    queue_search(repository, store, "tiny", load_conversations(data), settings, name="data")
    assert run_worker(repository, JobRunner(repository, store), options=WorkerOptions(once=True)) == 1
    (job,) = repository.list_jobs()
    document = job.result
    assert document is not None, job.error
    assert len(document["targets"]) == 2
    (search,) = repository.list_searches("tiny")
    assert search.id == document["search"]
    assert searched_space(search, anatomy).num_decisions == 2 * anatomy.num_layers
    planner = Planner(repository, PredictorCache(repository, capacity=2))
    plan = planner.plan(PlanRequest(model="tiny", sparsity=0.4, space=SpaceName.ALL))
    assert plan.method == "lop"
    assert plan.provenance.predictor == document["predictor"]
    assert (plan.target.space, plan.target.scope) == ((Axis.FFN, Axis.ATTENTION, Axis.SKIP), Scope.DECODER)
    assert plan.achieved.removed[Scope.DECODER] >= 0.4
    assert plan.predicted is not None
    assert plan.predicted.interval is not None
    assert plan.layers
    # None of it is for requests of another space.
    assert planner.plan(PlanRequest(model="tiny", sparsity=0.4)).method != "lop"
    layers = planner.plan(PlanRequest(model="tiny", sparsity=0.25, space=SpaceName.LAYERS))
    assert (layers.method, layers.target.space) == ("uniform", (Axis.SKIP,))
    assert "no predictor is trained for this model and space" in str(layers.provenance.note)
    for method, message in (
        (Method.FLAP, r"for the space 'ffn' \(got space 'layers'\).*'shortgpt'"),
        (Method.LOP, r"for the space 'layers'.*--space layers"),
    ):
        with pytest.raises(InputError, match=message):
            planner.plan(PlanRequest(model="tiny", sparsity=0.25, space=SpaceName.LAYERS, method=method))
    with pytest.raises(InputError, match="for the space that changes FFN widths alone"):
        planner.plan(PlanRequest(model="tiny", sparsity=0.25, space=SpaceName.ALL, scope=Scope.FFN))
    with pytest.raises(
        InfeasibleTargetError,
        match=r"in the space 'attention'.*; of the other spaces 'ffn' .*'layers' reaches 0\.75, 'all' reaches it",
    ):
        planner.plan(PlanRequest(model="tiny", sparsity=0.9, space=SpaceName.ATTENTION))


def test_a_ranking_without_groups_is_refused_where_some_of_them_would_go(
    repository: Repository, conversations: list[Conversation]
) -> None:
    model = repository.get_model("tiny")
    ranking = Ranking.from_bytes(repository.get_artifact(model.ranking_sha256).content)
    bare = repository.put_artifact(replace(ranking, kv_groups=None).to_bytes(), BINARY)
    repository.add_model(replace(model, id="bare", ranking_sha256=bare))
    with pytest.raises(InputError, match="what cuts KV groups needs a ranking that orders them"):
        search_model(repository, "bare", conversations, JOINT, name="data")
    planner = Planner(repository, PredictorCache(repository, capacity=1))
    with pytest.raises(InputError, match="what cuts KV groups needs a ranking that orders them"):
        planner.plan(PlanRequest(model="bare", sparsity=0.3, space=SpaceName.ALL))
    layers = replace(JOINT, axes=SpaceName.LAYERS, sparsities=(0.25,), num_evaluations=2)
    assert search_model(repository, "bare", conversations, layers, name="data").targets[0].metrics.kl > 0.0


def test_targets_of_latency_are_met_stored_and_answered_from(
    repository: Repository, conversations: list[Conversation]
) -> None:
    anatomy = repository.get_model("tiny").anatomy
    repository.add_device(DeviceRecord(made_up_profile("bench", anatomy=anatomy, attention=True), NOW))
    workload = Workload(prompt_tokens=12, output_tokens=4)
    settings = replace(JOINT, latency=LatencyTargets("bench", (0.85,), workload))
    result = search_model(repository, "tiny", conversations, settings, name="data")
    *_, timed = result.targets
    assert timed.evaluations == settings.num_evaluations
    (stored,) = repository.list_searches("tiny")
    assert SearchSettings.from_dict(stored.settings["search"]) == settings
    assert SearchResult.from_dict(json.loads(json.dumps(stored.result["search"]))).targets[-1].latency == timed.latency
    assert (stored.result["latency"]["source"], len(stored.result["latency"]["profile"])) == ("measured", 64)
    found = SearchFinder(repository).find(repository.get_model("tiny"), Method.MCTS, SpaceName.ALL)[-1]
    price = LatencyPrice(anatomy, latency_model(find_device(repository, "bench"), anatomy, workload))
    assert timed.latency is not None
    assert timed.latency.dense_ns == price.total
    assert price.cost(found.architecture) <= 0.85 * price.total
    # What is expected of parameters is learnt at those that were asked for.
    asked_for = {target.budget for target in result.targets if target.latency is None}
    assert searched_budgets(repository, "tiny", calibration_id(conversations), SpaceName.ALL) == asked_for
    # A plan for just that latency answers with it, as what was searched for it.
    planner = Planner(repository, PredictorCache(repository, capacity=1))
    most = timed.latency.most_ns / 1e6
    budget = Budget(latency_ms=most, prompt_tokens=12, output_tokens=4)
    request = PlanRequest(model="tiny", space=SpaceName.ALL, device="bench", budget=budget, method=Method.MCTS)
    plan = planner.plan(request)
    assert found.label in (plan.provenance.note or "")
    assert not plan.provenance.filled_up
    assert plan.achieved.latency_ms is not None
    assert plan.achieved.latency_ms <= most
    further = planner.plan(
        request.model_copy(update={"budget": budget.model_copy(update={"latency_ms": most * 1.002})})
    )
    assert further.provenance.filled_up == (further.layers != plan.layers)
    with pytest.raises(InputError, match=r"--device bench --latency-share 0\.\d+ --batch 1 --prompt-tokens 12"):
        planner.plan(request.model_copy(update={"method": Method.RANDOM}))
    # Measured anew, the device says nothing of what was searched before.
    slower = made_up_profile("bench", anatomy=anatomy, attention=True, layer_ms=2.0)
    repository.add_device(DeviceRecord(slower, NOW))
    again = record_result(repository, "tiny", conversations, settings, result, name="elsewhere")
    assert "latency" not in again.result


@pytest.mark.parametrize("method", [SearchMethod.EVOLUTION, SearchMethod.RANDOM])
def test_methods_to_compare_with_keep_to_a_latency_too(
    repository: Repository, conversations: list[Conversation], method: SearchMethod
) -> None:
    targets = LatencyTargets("l4", (0.6,))
    result = search_model(
        repository, "tiny", conversations, replace(JOINT, sparsities=(), method=method, latency=targets), name="data"
    )
    anatomy = repository.get_model("tiny").anatomy
    price = LatencyPrice(anatomy, latency_model(DEVICES["l4"], anatomy, targets.workload))
    (found,) = result.targets
    assert price.cost(JOINT.space(anatomy).architecture(found.choice)) <= 0.6 * price.total


def test_a_queued_search_has_its_targets_of_latency(
    repository: Repository, conversations: list[Conversation], tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    targets = LatencyTargets("l4", (0.6,), Workload(prompt_tokens=32, output_tokens=8))
    settings = replace(JOINT, sparsities=(0.3,), num_evaluations=4, latency=targets)
    job = queue_search(repository, store, "tiny", conversations, settings, name="data")
    run_worker(repository, JobRunner(repository, store), options=WorkerOptions(once=True))
    done = repository.get_job(job.id)
    assert done.result is not None
    assert [target["latency"] is None for target in done.result["targets"]] == [True, False]
    assert repository.list_searches("tiny")[0].settings["search"]["latency"] == targets.to_dict()
    plain = queue_search(repository, store, "tiny", conversations, replace(settings, latency=None), name="data")
    assert "latency" not in plain.settings
