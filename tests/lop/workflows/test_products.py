"""Models whose plans count on reconstruction: what is scored of them is solved, and their plans say so."""

from pathlib import Path

import pytest

from lop.workflows.comparing import compare_methods
from lop.workflows.products import products_folder
from lop.workflows.registration import register_model
from lop.workflows.searching import search_model
from mcts.settings import SearchSettings
from pruning.allocators.methods import Method
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.errors import ConflictError, InputError
from pruning.measuring.criterion import Criterion
from pruning.planning.plan import reconstruction_step
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import RankingOrigin

SEARCH = SearchSettings(sparsities=(0.5,), num_evaluations=14, num_levels=3)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOP_SECOND_ORDER", str(tmp_path / "second-order"))
    return tmp_path / "second-order"


@pytest.fixture
def few(data: Path) -> list[Conversation]:
    return load_conversations(data)[:8]


@pytest.mark.parametrize("criterion", Criterion)
def test_scores_and_plans_are_of_reconstructed_models(
    repository: Repository, checkpoint: Path, few: list[Conversation], root: Path, criterion: Criterion
) -> None:
    plain = register_model(repository, "plain", checkpoint, few, criterion=criterion)
    solved = register_model(repository, "solved", checkpoint, few, criterion=criterion, reconstructs=True)
    assert solved.ranking_sha256 == plain.ranking_sha256
    assert repository.get_model("solved").ranking_origin == RankingOrigin(
        plain.ranking_origin.kind if plain.ranking_origin else "", calibration_id(few), reconstructs=True
    )
    place = products_folder(solved.weights_sha256, calibration_id(few))
    assert place.parent == root
    assert len(list(place.glob("layer-?????.safetensors"))) == 4
    scores = {}
    for model in ("plain", "solved"):
        search_model(repository, model, few, SEARCH, name="data")
        samples = repository.list_samples(model)
        scores[model] = {sample.architecture: sample.metrics.kl for sample in samples}
    shared = [x for x in scores["plain"].keys() & scores["solved"].keys() if x.options]
    assert shared
    assert all(scores["plain"][x] != scores["solved"][x] for x in shared)
    compared = {}
    for model, steps in (("plain", ()), ("solved", (reconstruction_step(calibration_id(few)),))):
        plan = Planner(repository, PredictorCache(repository, capacity=1)).plan(
            PlanRequest(model=model, sparsity=0.5, method=Method.UNIFORM)
        )
        assert plan.recovery == steps
        found = compare_methods(repository, model, few, [0.5], methods=[Method.UNIFORM], round_to=8)
        compared[model] = found.plans[0].kl
    assert compared["plain"] != compared["solved"]


def test_with_and_without_it_are_two_models(
    repository: Repository, checkpoint: Path, few: list[Conversation], root: Path
) -> None:
    register_model(repository, "solved", checkpoint, few, reconstructs=True)
    with pytest.raises(ConflictError, match="'solved' was ranked on these, calibration, with reconstruction"):
        register_model(repository, "solved", checkpoint, few)
    register_model(repository, "plain", checkpoint, few)
    with pytest.raises(ConflictError, match="'plain' was ranked on these, calibration, without reconstruction"):
        register_model(repository, "plain", checkpoint, few, reconstructs=True)


def test_a_machine_without_the_products_says_how_to_get_them(
    repository: Repository, checkpoint: Path, few: list[Conversation], root: Path
) -> None:
    model = register_model(repository, "solved", checkpoint, few, reconstructs=True)
    place = products_folder(model.weights_sha256, calibration_id(few))
    (place / "layer-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"does not hold all of those of 'solved'.*--reconstruct"):
        search_model(repository, "solved", few, SEARCH, name="data")
    assert register_model(repository, "solved", checkpoint, few, reconstructs=True) == model
    search_model(repository, "solved", few, SEARCH, name="data")
