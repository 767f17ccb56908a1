"""Searches of densities: what they score, what plans say of it, and that `lop sparsify` writes these weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lop.console.plan_report import draw_plan, kept_layers, show_plan
from lop.workflows.after_recovery import check_recoverable
from lop.workflows.comparing import compare_methods
from lop.workflows.engines import EvaluatorRecipe, evaluator_memory_bytes, squares_for
from lop.workflows.registration import read_conversations, register_model
from lop.workflows.searching import search_model
from lop.workflows.sparsifying import planned_sparsity, sparsify
from lop.workflows.validating import validate
from mcts.settings import SearchMethod, SearchSettings
from pruning.allocators.methods import Method
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.anatomy.families import FAMILIES
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.rewriting.sparsifier import LocalStep, StepInputs
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.errors import InfeasibleTargetError, InputError
from pruning.measuring.evaluation import evaluate_model
from pruning.measuring.masked_weights import MaskedWeights
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.cost import achieved_costs
from pruning.planning.nonzero_weights import zeroed_share
from pruning.planning.plan import Axis, PruningPlan
from pruning.planning.scope import Scope
from recovery.recipe import Recipe
from service.planner import HOW_DENSITIES_ARE_WRITTEN, Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint, write_conversations

SETTINGS = SearchSettings(
    sparsities=(0.5, 0.7), scope=Scope.DECODER, axes=SpaceName.DENSITY, num_evaluations=3, parallel_leaves=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("densities")


@pytest.fixture(scope="module")
def conversations(folder: Path) -> list[Conversation]:
    return read_conversations(write_conversations(folder / "calibration"))[0]


@pytest.fixture(scope="module")
def repository(folder: Path, conversations: list[Conversation]) -> Repository:
    """A tiny model with a finished search of densities."""
    repository = open_repository(f"sqlite:///{folder / 'lop.db'}", create=True)
    register_model(repository, "tiny", save_tiny_checkpoint(folder / "model"), conversations)
    search_model(repository, "tiny", conversations, SETTINGS, name="calibration")
    return repository


def ask(repository: Repository, sparsity: float, method: Method | None = None) -> PruningPlan:
    request = PlanRequest(model="tiny", sparsity=sparsity, space=SpaceName.DENSITY, method=method)
    return Planner(repository, PredictorCache(repository, capacity=1)).plan(request)


def decoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of projections, by layer and place within it."""
    named = load_model(folder).get_decoder().named_parameters()
    return {name.removeprefix("layers."): x.detach() for name, x in named if "proj" in name}


def scored_weights(
    repository: Repository,
    conversations: list[Conversation],
    architecture: Architecture,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, torch.Tensor]:
    """What an evaluator puts in the place of weights, brought back from its ranking's order; as `decoder_weights`."""
    model = repository.get_model("tiny")
    linears = FAMILIES[model.anatomy.text_model_type].linears
    found: dict[str, torch.Tensor] = {}
    mask = MaskedWeights.__call__

    def spying(
        self: MaskedWeights,
        site: Site,
        index: int,
        density: float,
        weight: torch.Tensor,
        axis: int,
        places: torch.Tensor | None,
    ) -> torch.Tensor:
        masked = mask(self, site, index, density, weight, axis, places)
        own = masked if places is None else masked.index_select(axis, places.argsort())
        found[f"{site.layer}.{linears(site.sublayer)[index]}.weight"] = own
        return masked

    monkeypatch.setattr(MaskedWeights, "__call__", spying)
    ranking = repository.get_artifact(model.ranking_sha256).content
    recipe = EvaluatorRecipe.of(model, ranking, conversations, squares=squares_for(model, conversations))
    evaluator = recipe()
    assert evaluator([DENSE])[0].kl == 0.0
    (metrics,) = evaluator([architecture])
    assert evaluator([DENSE])[0].kl == 0.0
    assert evaluator([architecture]) == [metrics]
    return found


def test_what_is_written_is_what_was_scored(
    repository: Repository,
    conversations: list[Conversation],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan is the search's best; the folder has its weights, to the bit, and its KL; other costs are as dense."""
    model, place = repository.get_model("tiny"), folder / "model"
    plan = ask(repository, 0.5, Method.MCTS)
    architecture = plan.architecture(model.anatomy)
    (search,) = repository.list_searches("tiny")
    found = search.result["search"]["targets"][0]
    assert SETTINGS.space(model.anatomy).choice_of(architecture) == tuple(found["choice"])
    assert plan.predicted is not None

    asked, densities = planned_sparsity(place, plan, LocalStep.WANDA, StepInputs.DENSE)
    report = sparsify(place, tmp_path / "out", asked, conversations, densities=densities)
    assert 1.0 - report.density == pytest.approx(zeroed_share(model.anatomy, architecture), abs=1e-12)
    assert report.document["inputs"] == "dense"

    dense, sparse = (decoder_weights(x) for x in (place, tmp_path / "out"))
    scored = scored_weights(repository, conversations, architecture, monkeypatch)
    assert len(scored) > 7
    for name, weight in sparse.items():
        assert torch.equal(weight, scored.get(name, dense[name]))
        assert name not in scored or not torch.equal(weight, dense[name])

    batches = make_batches(conversations, load_processor(place))
    metrics = evaluate_model(load_model(tmp_path / "out"), batches, load_model(place))
    # KL of some 1e-5 from differences of logarithms in float32.
    assert metrics.kl == pytest.approx(found["metrics"]["kl"], abs=1e-7)

    # By default each layer is chosen by the inputs that it will have: other weights, as many of them zero.
    asked, densities = planned_sparsity(place, plan, LocalStep.WANDA)
    other = sparsify(place, tmp_path / "other", asked, conversations, densities=densities)
    assert other.document["zeroed"] == report.document["zeroed"]
    assert "inputs" not in other.document
    rewritten = decoder_weights(tmp_path / "other")
    assert any(not torch.equal(rewritten[name], sparse[name]) for name in sparse)


def test_what_a_plan_shows(repository: Repository, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    anatomy = repository.get_model("tiny").anatomy
    plan = ask(repository, 0.5, Method.UNIFORM)
    dense = {sublayer: anatomy.dense_units(sublayer) for sublayer in Sublayer}
    show_plan(plan, dense)
    shown = " ".join(capsys.readouterr().out.split())
    assert "dense, density 0.5" in shown
    assert f"zeroed, which makes nothing smaller or faster: ffn {plan.achieved.zeroed[Scope.FFN]:.4f}" in shown
    kept = kept_layers(plan, dense)
    assert kept.zeroes
    assert kept.changes_attention
    assert kept.fractions(Sublayer.FFN) == [0.5] * 4
    draw_plan(plan, dense, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000


@pytest.mark.parametrize("method", [Method.MCTS, Method.ADDITIVE_DP, Method.UNIFORM])
def test_plans(repository: Repository, method: Method) -> None:
    anatomy = repository.get_model("tiny").anatomy
    dense = achieved_costs(anatomy, DENSE)
    for sparsity in (0.5, 0.7):
        plan = ask(repository, sparsity, method)
        assert zeroed_share(anatomy, plan.architecture(anatomy)) == pytest.approx(sparsity, abs=0.02)
        assert plan.achieved == dense.model_copy(update={"zeroed": plan.achieved.zeroed})
        assert plan.target.space == (Axis.DENSITY,)
        assert plan.provenance.note is not None
        assert HOW_DENSITIES_ARE_WRITTEN in plan.provenance.note
        if method is Method.UNIFORM:
            kept = {x.density for layer in plan.layers for x in (layer.ffn, layer.attention) if x is not None}
            assert kept == {round(1.0 - sparsity, 1)}


def test_a_plan_between_targets_is_filled_up(repository: Repository) -> None:
    plan = ask(repository, 0.48, Method.MCTS)
    assert plan.provenance.filled_up
    assert zeroed_share(
        repository.get_model("tiny").anatomy, plan.architecture(repository.get_model("tiny").anatomy)
    ) == pytest.approx(0.48, abs=0.02)
    assert ask(repository, 0.5).method == Method.MCTS


@pytest.mark.parametrize("method", [SearchMethod.EVOLUTION, SearchMethod.RANDOM])
def test_other_searches(repository: Repository, conversations: list[Conversation], method: SearchMethod) -> None:
    settings = replace(SETTINGS, sparsities=(0.5,), method=method, num_evaluations=2)
    (target,) = search_model(repository, "tiny", conversations, settings, name="calibration", record=False).targets
    anatomy = repository.get_model("tiny").anatomy
    assert zeroed_share(anatomy, settings.space(anatomy).architecture(target.choice)) >= 0.5


def test_validation_zeroes_what_calibration_chose(
    repository: Repository, conversations: list[Conversation], tmp_path: Path
) -> None:
    """On the search's own conversations it measures the same; on others by the same masks."""
    result = search_model(repository, "tiny", conversations, SETTINGS, name="calibration")
    space = SETTINGS.space(repository.get_model("tiny").anatomy)
    again = validate(
        repository, "tiny", conversations, result, calibration=conversations, space=space, name="calibration"
    )
    assert again.metrics == tuple(target.metrics for target in result.targets)
    others = read_conversations(write_conversations(tmp_path / "other", 2))[0]
    of_others = [
        validate(repository, "tiny", others, result, calibration=used, space=space, name="other").metrics
        for used in (conversations, others)
    ]
    assert of_others[0] != of_others[1]


def test_what_does_not_apply_is_refused_by_name(repository: Repository, conversations: list[Conversation]) -> None:
    model = repository.get_model("tiny")
    with pytest.raises(ValueError, match="no budget asks for them"):
        PlanRequest.model_validate({"model": "tiny", "space": "density", "budget": {"disk_bytes": 10**9}})
    with pytest.raises(ValueError, match="leave scope out"):
        PlanRequest(model="tiny", space=SpaceName.DENSITY, sparsity=0.5, scope=Scope.MODEL)
    with pytest.raises(InputError, match="scope 'model'"):
        replace(SETTINGS, scope=Scope.MODEL).resolve_targets(model.anatomy)
    with pytest.raises(InfeasibleTargetError, match=r"cannot exceed 0\.80"):
        ask(repository, 0.9)
    with pytest.raises(InfeasibleTargetError, match="lowest density"):
        replace(SETTINGS, sparsities=(), budgets=(1,)).resolve_targets(model.anatomy)
    for method, reason in ((Method.LOP, "'lop' is for the space"), (Method.ECOFLAP, "'ecoflap' is for the space")):
        with pytest.raises(InputError, match=reason):
            ask(repository, 0.5, method)
    with pytest.raises(InputError, match="space 'density'"):
        compare_methods(repository, "tiny", conversations, [0.5], space=SpaceName.DENSITY, round_to=8)
    with pytest.raises(InputError, match="space 'density'"):
        check_recoverable(model, SETTINGS, Recipe())
    # Without what weights are scored by, the evaluator says so before it measures anything.
    recipe = EvaluatorRecipe.of(model, repository.get_artifact(model.ranking_sha256).content, conversations)
    evaluator = recipe()
    with pytest.raises(InputError, match=r"densities are scored by .* without a masker.*squares of the dense"):
        evaluator([ask(repository, 0.5).architecture(model.anatomy)])
    evaluator = replace(recipe, squares=squares_for(model, conversations))()
    with pytest.raises(InputError, match=r"sub-layers that are whole otherwise.* with a masker"):
        evaluator([Architecture.of({Site(0, Sublayer.FFN): Option(8, density=0.5)})])


def test_what_an_evaluator_of_densities_takes(repository: Repository, conversations: list[Conversation]) -> None:
    recipe = EvaluatorRecipe.of(repository.get_model("tiny"), b"", conversations)
    assert evaluator_memory_bytes(replace(recipe, squares=b"")) > evaluator_memory_bytes(recipe) + 2**30
