"""Methods beside the predictor in spaces with KV groups, skips and layers: scans, statistics, searches, rounds."""

from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.comparing import compare_methods
from lop.workflows.measuring import StatisticsMeasurer
from lop.workflows.registration import read_conversations, register_model
from lop.workflows.rounds import RoundSettings, train_in_rounds
from lop.workflows.searching import search_model
from mcts.settings import SearchMethod, SearchSettings
from policy_model.training import TrainingSettings
from pruning.allocators.methods import Method
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.surgery import apply_plan
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import InputError
from pruning.measuring.evaluation import evaluate_model
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget
from service.finished_searches import SearchFinder
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from service.sensitivity_scan import ScanFinder
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint, write_conversations

JOINT = SearchSettings(
    sparsities=(0.3, 0.5), scope=Scope.DECODER, axes=SpaceName.ALL, num_evaluations=8, num_levels=3, round_to=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spaces")


@pytest.fixture(scope="module")
def conversations(folder: Path) -> list[Conversation]:
    return read_conversations(write_conversations(folder / "calibration"))[0]


@pytest.fixture(scope="module")
def repository(folder: Path, conversations: list[Conversation]) -> Repository:
    """A tiny model with statistics, and finished searches of everything and of whole layers."""
    repository = open_repository(f"sqlite:///{folder / 'lop.db'}", create=True)
    register_model(repository, "tiny", save_tiny_checkpoint(folder / "model"), conversations)
    StatisticsMeasurer(repository, "tiny").measure(StatisticsKind.ACTIVATIONS, conversations, name="calibration")
    for method in SearchMethod:
        search_model(repository, "tiny", conversations, replace(JOINT, method=method), name="calibration")
    layers = replace(JOINT, axes=SpaceName.LAYERS, sparsities=(0.25,), num_evaluations=2)
    search_model(repository, "tiny", conversations, layers, name="calibration")
    return repository


def ask(repository: Repository, method: Method | None, space: SpaceName, **target: object) -> PruningPlan:
    asked = {"model": "tiny", "space": space, "method": method, **target}
    return Planner(repository, PredictorCache(repository, capacity=1)).plan(PlanRequest.model_validate(asked))


@pytest.mark.parametrize("space", [SpaceName.ALL, SpaceName.LAYERS])
def test_the_additive_program_takes_the_least_sum_of_what_the_scan_measured(
    repository: Repository, space: SpaceName
) -> None:
    model = repository.get_model("tiny")
    scan = ScanFinder(repository).find(model, space)
    assert scan is not None
    plan = ask(repository, Method.ADDITIVE_DP, space, sparsity=0.5)
    assert plan.achieved.removed[Scope.DECODER] >= 0.5
    assert (plan.provenance.samples, plan.predicted) == (scan.num_samples, None)
    if space is SpaceName.LAYERS:
        # Layers are alike: half of the decoder is two of four, and those of least KL alone go.
        cheapest = sorted(range(len(scan.table)), key=lambda n: float(scan.table[n, 0]))[:2]
        expected = {scan.space.decisions[n].sites[0].layer for n in cheapest}
        assert {x.index for x in plan.layers if x.ffn is not None and x.ffn.units == 0} == expected
        assert all(x.attention is not None and x.attention.units == 0 for x in plan.layers if x.ffn is not None)


@pytest.mark.parametrize("limit", ["memory_bytes", "flops", "disk_bytes", "all"])
def test_the_additive_program_keeps_to_budgets(repository: Repository, limit: str) -> None:
    dense = ask(repository, Method.ADDITIVE_DP, SpaceName.ALL, sparsity=0.0).achieved
    half = {
        name: int(getattr(dense, name) * 0.85)
        for name in ("memory_bytes", "flops", "disk_bytes")
        if limit in (name, "all")
    }
    plan = ask(repository, Method.ADDITIVE_DP, SpaceName.ALL, budget=Budget(**half))
    assert plan.method == "additive-dp"
    assert all(getattr(plan.achieved, name) <= most for name, most in half.items())
    assert {x.sublayer for x, _ in plan.architecture(repository.get_model("tiny").anatomy).items}


def test_shortgpt_removes_whole_layers_in_the_order_of_their_influence(repository: Repository) -> None:
    record = repository.latest_statistics("tiny", StatisticsKind.ACTIVATIONS)
    assert record is not None
    influence = ModelStatistics.from_bytes(repository.get_artifact(record.sha256).content).arrays["block_influence"]
    order = sorted(range(1, len(influence)), key=lambda layer: float(influence[layer]))  # the first one stays
    for count in (1, 2):
        plan = ask(repository, Method.SHORTGPT, SpaceName.LAYERS, sparsity=0.25 * count - 0.01)
        assert {x.index for x in plan.layers} == set(order[:count])
        assert plan.provenance.calibration == record.calibration_id
    # In finer spaces the last one goes in part.
    found = ask(repository, Method.SHORTGPT, SpaceName.ALL, sparsity=0.35)
    options = found.architecture(repository.get_model("tiny").anatomy).options
    assert {site.layer for site in options} == set(order[:2])
    assert all(options[Site(order[0], sublayer)] == Option(0) for sublayer in Sublayer)
    assert 0.35 <= found.achieved.removed[Scope.DECODER] < 0.4
    with pytest.raises(InputError, match=r"'shortgpt' is for the space 'ffn' or 'layers' or 'all'"):
        ask(repository, Method.SHORTGPT, SpaceName.ATTENTION, sparsity=0.1)


@pytest.mark.parametrize("method", SearchMethod)
def test_finished_searches_answer_in_their_space(repository: Repository, method: SearchMethod) -> None:
    plan = ask(repository, Method(method), SpaceName.ALL, sparsity=0.5)
    anatomy = repository.get_model("tiny").anatomy
    assert plan.achieved.removed[Scope.DECODER] >= 0.5
    assert plan.predicted is not None
    assert not plan.provenance.filled_up
    assert f"{method}: search " in str(plan.provenance.note)
    *_, found = SearchFinder(repository).find(repository.get_model("tiny"), Method(method), SpaceName.ALL)
    reached = 1.0 - found.parameters / anatomy.decoder_parameters
    near = ask(repository, Method(method), SpaceName.ALL, sparsity=reached - 0.06)
    assert near.provenance.filled_up
    kept, before = (x.architecture(anatomy) for x in (near, plan))
    for sublayer in Sublayer:
        dense = anatomy.dense_units(sublayer)
        assert all(a >= b for a, b in zip(kept.units(sublayer, dense), before.units(sublayer, dense), strict=True))
    with pytest.raises(InputError, match=r"for the space 'attention'.*--space attention -s 0\.1`"):
        ask(repository, Method(method), SpaceName.ATTENTION, sparsity=0.1)
    with pytest.raises(InputError, match=rf"at most 1/16 of the decoder.*--method {method} --space all -s"):
        ask(repository, Method(method), SpaceName.ALL, sparsity=reached - 0.07)
    # What was searched in one space answers for no other one.
    with pytest.raises(InputError, match=r"was searched by it for nothing"):
        ask(repository, Method(method), SpaceName.FFN, sparsity=0.5)


def test_without_a_method_a_search_answers_near_by_and_the_additive_program_elsewhere(repository: Repository) -> None:
    assert ask(repository, None, SpaceName.ALL, sparsity=0.5).method == "mcts"
    plan = ask(repository, None, SpaceName.ALL, sparsity=0.12)
    assert plan.method == "additive-dp"
    assert "mcts: no search for the space 'all' is finished within one level step" in str(plan.provenance.note)
    assert ask(repository, None, SpaceName.ATTENTION, sparsity=0.1).method == "uniform"


def test_all_are_compared_on_models_that_skip(
    repository: Repository, conversations: list[Conversation], folder: Path
) -> None:
    held_out, _ = read_conversations(write_conversations(folder / "validation", seed=1))
    comparison = compare_methods(repository, "tiny", held_out, [0.5], space=SpaceName.ALL, round_to=8)
    assert [plan.method for plan in comparison.plans] == [
        "additive-dp",
        "uniform",
        "shortgpt",
        "mcts",
        "evolution",
        "random",
    ]
    (reason,) = comparison.missing
    assert reason.startswith("lop at 0.5: method 'lop' needs a trained predictor")
    assert all(plan.achieved_sparsity >= 0.5 for plan in comparison.plans)
    plan = ask(repository, Method.SHORTGPT, SpaceName.ALL, sparsity=0.5)
    (compared,) = (x for x in comparison.plans if x.plan_id == plan.plan_id)
    ranking = Ranking.from_bytes(repository.get_artifact(plan.ranking.sha256).content)
    cut = apply_plan(load_model(folder / "model"), plan, ranking)
    batches = make_batches(held_out, load_processor(folder / "model"))
    real = evaluate_model(cut, batches, load_model(folder / "model"))
    assert compared.kl == pytest.approx(real.kl, rel=1e-3, abs=1e-7)


def test_rounds_lead_searches_of_everything(
    repository: Repository, conversations: list[Conversation], folder: Path
) -> None:
    from lop.workflows.engines import LOCAL_ENGINE, EvaluatorRecipe, open_engine

    settings = TrainingSettings(
        num_levels=3,
        round_to=8,
        axes=SpaceName.ALL,
        policy_rounds=1,
        policy_steps_per_round=2,
        problems_per_round=8,
        batch_size=8,
        policy_width=16,
        policy_blocks=1,
    )
    model = repository.get_model("tiny")
    recipe = EvaluatorRecipe.of(model, repository.get_artifact(model.ranking_sha256).content, conversations)
    sizes = RoundSettings(num_targets=2, num_evaluations=3)
    before = repository.count_samples("tiny")
    with open_engine(recipe, LOCAL_ENGINE) as evaluate:
        record, (report,) = train_in_rounds(
            repository, "tiny", calibration_id(conversations), evaluate, settings, 1, sizes
        )
    assert repository.count_samples("tiny") - before == report.new_samples > 0
    assert all(0.0 < sparsity < 1.0 for sparsity in report.sparsities)
    # The report's sparsities are of the decoder: plans of the predictor for them are what it measured.
    plan = ask(repository, Method.LOP, SpaceName.ALL, sparsity=report.sparsities[0])
    assert plan.provenance.predictor == record.id
    assert record.config["policy"] is not None  # which led the searches
    assert plan.achieved.removed[Scope.DECODER] == pytest.approx(report.sparsities[0], abs=0.02)
