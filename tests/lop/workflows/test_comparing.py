"""`lop compare` and `lop search` as their users see them: every method, the validation split, the pictures."""

import json
import sys
import weakref
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from lop.cli import main
from lop.console.kept_layers import KeptLayers
from lop.console.pictures import check_picture, comparison_panels, draw_comparison, draw_search
from lop.workflows.comparing import compare_methods
from lop.workflows.compute import load_for_compute
from lop.workflows.measuring import StatisticsMeasurer
from lop.workflows.registration import read_conversations, register_model
from lop.workflows.searching import search_model
from lop.workflows.validating import check_disjoint, validate
from mcts.settings import SearchMethod, SearchSettings
from pruning.allocators.methods import Method
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.surgery import apply_plan
from pruning.data.batches import make_batches
from pruning.data.conversations import calibration_id
from pruning.errors import InputError
from pruning.measuring.evaluation import evaluate_model
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.ranking import Ranking
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint, write_conversations

SPARSITIES = (0.3, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return write_conversations(folder / "calibration")


@pytest.fixture(scope="module")
def held_out(folder: Path) -> Path:
    return write_conversations(folder / "validation", seed=1)


@pytest.fixture(scope="module")
def repository(folder: Path, data: Path) -> Repository:
    """A tiny model with everything but a predictor: statistics of all kinds, a search by each method."""
    repository = open_repository(f"sqlite:///{folder / 'lop.db'}", create=True)
    conversations, _ = read_conversations(data)
    register_model(repository, "tiny", save_tiny_checkpoint(folder / "model"), conversations)
    measurer = StatisticsMeasurer(repository, "tiny")
    for kind in StatisticsKind:
        measurer.measure(kind, conversations, name="calibration")
    for method in SearchMethod:
        settings = SearchSettings(sparsities=SPARSITIES, method=method, num_evaluations=6, num_levels=3)
        search_model(repository, "tiny", conversations, settings, name="calibration")
    return repository


def invoke(*arguments: str) -> int:
    """Run the command in this process; returns the exit code."""
    with patch.object(sys, "argv", ["lop", *arguments]), pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_every_method_but_the_predictor_answers(repository: Repository, held_out: Path) -> None:
    conversations, _ = read_conversations(held_out)
    told: list[tuple[int, int]] = []
    comparison = compare_methods(
        repository, "tiny", conversations, SPARSITIES, round_to=8, on_plan=lambda *args: told.append(args)
    )
    expected = [(method, sparsity) for method in Method if method is not Method.LOP for sparsity in SPARSITIES]
    assert [(plan.method, plan.sparsity) for plan in comparison.plans] == expected
    (reason,) = comparison.missing
    assert reason.startswith("lop at 0.3, 0.5: method 'lop' needs a trained predictor (got model 'tiny' has none).")
    assert comparison.calibrated == ()
    assert not any(plan.filled_up for plan in comparison.plans)
    assert told[-1] == (len(expected), len(expected))
    assert all(plan.achieved_sparsity >= plan.sparsity for plan in comparison.plans)


@pytest.mark.parametrize("method", [Method.FLAP, Method.MCTS])
def test_the_scores_are_those_of_the_model_really_cut(
    repository: Repository, held_out: Path, folder: Path, method: Method
) -> None:
    conversations, _ = read_conversations(held_out)
    (compared,) = compare_methods(repository, "tiny", conversations, [0.5], methods=[method], round_to=8).plans
    planner = Planner(repository, PredictorCache(repository, capacity=1))
    plan = planner.plan(PlanRequest(model="tiny", sparsity=0.5, method=method))
    assert plan.plan_id == compared.plan_id
    ranking = Ranking.from_bytes(repository.get_artifact(plan.ranking.sha256).content)
    cut = apply_plan(load_model(folder / "model"), plan, ranking)
    batches = make_batches(conversations, load_processor(folder / "model"))
    real = evaluate_model(cut, batches, load_model(folder / "model"))
    assert compared.kl == pytest.approx(real.kl, rel=1e-3, abs=1e-7)
    assert compared.accuracy == real.accuracy
    assert compared.agreement == real.agreement


def test_a_method_that_was_asked_for_and_cannot_answer_is_an_error(repository: Repository, held_out: Path) -> None:
    conversations, _ = read_conversations(held_out)
    with pytest.raises(InputError, match="'lop' needs a trained predictor"):
        compare_methods(repository, "tiny", conversations, [0.5], methods=[Method.LOP], round_to=8)
    with pytest.raises(InputError, match="method 'mcts' needs a finished search"):
        compare_methods(repository, "tiny", conversations, [0.1], methods=[Method.MCTS], round_to=8)


def test_validation_scores_the_best_configurations(repository: Repository, data: Path, held_out: Path) -> None:
    calibration, validation = read_conversations(data)[0], read_conversations(held_out)[0]
    settings = SearchSettings(sparsities=SPARSITIES, num_evaluations=6, num_levels=3)
    result = search_model(repository, "tiny", calibration, settings, name="calibration")
    check_disjoint(calibration, validation)
    space = settings.space(repository.get_model("tiny").anatomy)
    validated = validate(
        repository, "tiny", validation, result, calibration=calibration, space=space, name="other.json"
    )
    assert (validated.data, validated.calibration_id, len(validated.metrics)) == (
        "other.json",
        calibration_id(validation),
        2,
    )
    assert repository.get_calibration(validated.calibration_id).name == "other.json"
    # The calibration set itself gives back what the search measured.
    again = validate(repository, "tiny", calibration, result, calibration=calibration, space=space, name="calibration")
    assert again.metrics == tuple(target.metrics for target in result.targets)
    assert (validated.dense.kl, validated.dense.agreement) == (0.0, 1.0)


def test_a_neighbour_that_is_filled_up_is_marked(repository: Repository, held_out: Path) -> None:
    conversations, _ = read_conversations(held_out)
    methods = [Method.UNIFORM, Method.RANDOM]
    compared = compare_methods(repository, "tiny", conversations, [0.45, 0.5], methods=methods, round_to=8)
    assert [(plan.method, plan.sparsity, plan.filled_up) for plan in compared.plans] == [
        ("uniform", 0.45, False),
        ("uniform", 0.5, False),
        ("random", 0.45, True),
        ("random", 0.5, False),
    ]
    assert compared.plans[2].to_dict()["filled_up"] is True


def test_scores_on_the_calibration_set_are_told(repository: Repository, data: Path) -> None:
    conversations, _ = read_conversations(data)
    methods = [Method.UNIFORM, Method.FLAP, Method.MCTS]
    compared = compare_methods(repository, "tiny", conversations, SPARSITIES, methods=methods, round_to=8)
    assert compared.calibrated == ("flap", "mcts")


def test_one_reason_is_told_once_a_method(repository: Repository, held_out: Path) -> None:
    conversations, _ = read_conversations(held_out)
    missing = compare_methods(repository, "tiny", conversations, [0.05, 0.1, 0.5], round_to=8).missing
    assert [reason.split(": ")[0] for reason in missing] == [
        "lop at 0.05, 0.1, 0.5",
        "mcts at 0.05, 0.1",
        "evolution at 0.05, 0.1",
        "random at 0.05, 0.1",
    ]
    # The remedies name a target each, so they are not told.
    assert missing[1].endswith("(got model 'tiny' was searched by it for sparsity 0.3 (ffn), sparsity 0.5 (ffn))")


def test_the_model_of_one_ranking_is_gone_before_the_next_is_loaded(
    repository: Repository, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def load(folder: Path) -> torch.nn.Module:
        assert all(reference() is None for reference in loaded)
        model: torch.nn.Module = load_for_compute(folder)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("lop.workflows.compute.load_for_compute", load)
    conversations, _ = read_conversations(held_out)
    methods = [Method.UNIFORM, Method.FLAP, Method.LLM_PRUNER]
    compare_methods(repository, "tiny", conversations, [0.5], methods=methods, round_to=8)
    assert len(loaded) == 3


def test_conversations_of_the_search_validate_nothing(data: Path) -> None:
    conversations, _ = read_conversations(data)
    with pytest.raises(InputError, match="must not be among those") as caught:
        check_disjoint(conversations[:2], conversations[1:])
    assert "1 are" in str(caught.value)


@pytest.mark.usefixtures("repository")
def test_the_commands_draw(data: Path, held_out: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "tiny", "--database", f"sqlite:///{folder / 'lop.db'}", "-s", "0.5"]
    search = ["search", *common, "--data", str(data), "-n", "6", "--num-levels", "3", "--method", "random"]
    assert invoke(*search, "--validation", str(held_out), "--plot", str(folder / "search.png"), "--json") == 0
    (metrics,) = json.loads(capsys.readouterr().out)["validation"]
    assert set(metrics) == {"kl", "nll", "accuracy", "num_tokens", "num_answers", "agreement"}
    assert invoke("plan", *common, "--method", "random", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["predicted"]["quality"] == metrics["kl"]
    assert plan["predicted"]["agreement"] == metrics["agreement"]
    assert f"validation data, {held_out.name} (set " in plan["provenance"]["note"]
    assert invoke("compare", *common, "--data", str(held_out), "--plot", str(folder / "compare.svg")) == 0
    said = capsys.readouterr()
    assert "evolution" in said.out
    assert "needs a trained predictor" in " ".join(said.err.split())
    assert "decided from" not in said.err
    assert "filled up" not in said.out
    assert invoke("compare", *common[:-1], "0.45", "--data", str(data), "--method", "random") == 0
    said = capsys.readouterr()
    assert f"{data} is what random decided from" in said.err.replace("\n", " ")
    assert "filled up: what was searched for another target" in said.out
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "compare.svg").read_bytes()


def test_a_picture_that_cannot_be_drawn_is_told_before_the_work(folder: Path) -> None:
    for path in (folder / "nowhere" / "x.png", folder / "x.txt"):
        with pytest.raises(InputError, match="in a folder that exists"):
            check_picture(path)


def test_curves_of_several_methods_and_targets(folder: Path) -> None:
    curves = {f"target {i}": {"mcts": [0.5, 0.4, 0.1], "random": [0.9, 0.5]} for i in range(4)}
    draw_search(curves, folder / "curves.png")
    rows = [
        {"method": method, "sparsity": s, "kl": s, "accuracy": 1 - s} for method in ("mcts", "flap") for s in (0.2, 0.4)
    ]
    assert [name for name, _, _ in comparison_panels(rows, exact_match=True)] == ["kl", "accuracy"]
    assert [name for name, _, _ in comparison_panels(rows, exact_match=False)] == ["kl"]
    draw_comparison(rows, folder / "comparison.png")
    agreeing = [row | {"agreement": 1 - s / 2} for row, s in zip(rows, (0.2, 0.4) * 2, strict=True)]
    assert [name for name, _, _ in comparison_panels(agreeing, exact_match=False)] == ["kl", "agreement"]
    dense = {Sublayer.FFN: (64, 64), Sublayer.ATTENTION: (2, 2)}
    kept = [("mcts", KeptLayers.of(Architecture.of({Site(1, Sublayer.ATTENTION): Option(0)}), dense))]
    draw_comparison(agreeing, folder / "agreement.png", exact_match=False)
    draw_comparison(agreeing, folder / "layers.svg", exact_match=False, kept=kept)
    assert "decoder layer" in (folder / "layers.svg").read_text()
    assert (folder / "agreement.png").stat().st_size > 10_000
    assert (folder / "curves.png").stat().st_size > 10_000
    assert (folder / "comparison.png").stat().st_size > 10_000
