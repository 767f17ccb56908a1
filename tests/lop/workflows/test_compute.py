"""Half types: as fast, and as exact, as a float32 copy of the checkpoint, whether that fits in memory or not."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lop.workflows.compute import load_for_compute
from lop.workflows.registration import register_model
from lop.workflows.searching import search_model
from mcts.settings import SearchSettings
from pruning.allocators.methods import Method
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.data.batches import Batch
from pruning.data.conversations import Conversation, load_conversations
from pruning.forward.layer_source import CheckpointLayers
from pruning.measuring.activation_statistics import measure_activations
from pruning.measuring.evaluation import ConfigurationEvaluator, evaluate_model
from pruning.measuring.metrics import Metrics
from pruning.planning.ranking import Ranking
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from tests.pruning.cut_models import WIDTHS, random_ranking
from tests.pruning.forward.test_compute_dtype import half_products
from tests.pruning.measuring.test_evaluation_families import batches_for, save_lively_model
from tests.pruning.packed_models import BITS, cut_and_rounded, plan_of, save_wide_checkpoint
from tests.tiny_models import BUILDERS, save_tiny_checkpoint

METHODS = (Method.MCTS, Method.ADDITIVE_DP, Method.FLAP, Method.OWL)


@pytest.fixture(scope="module")
def conversations(data: Path) -> list[Conversation]:
    return load_conversations(data)[:6]


@pytest.fixture(autouse=True)
def slow_with_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.forward.free_memory.free_memory_bytes", lambda: 1000.0)


def halved(folder: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """A checkpoint in a half type, and its float32 copy."""
    half = save_lively_model(folder / "half", "llava-llama", dtype)
    load_model(half, dtype=torch.float32).save_pretrained(folder / "wide")
    return half, folder / "wide"


def metrics_in(folder: Path, batches: list[Batch]) -> Metrics:
    return metrics_of(load_for_compute(folder), batches, random_ranking(read_anatomy(folder)))


def metrics_of(model: PreTrainedModel, batches: list[Batch], ranking: Ranking) -> Metrics:
    evaluator = ConfigurationEvaluator(model, batches, ranking)
    evaluator.evaluate([*WIDTHS[:2], 16, 48])  # leaves a prefix behind
    return evaluator.evaluate(WIDTHS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_widened_once_where_they_fit(
    dtype: torch.dtype, conversations: list[Conversation], tmp_path: Path
) -> None:
    half, wide = halved(tmp_path, dtype)
    assert {x.dtype for x in load_for_compute(half).parameters()} == {torch.float32}
    batches = batches_for("llava-llama", conversations)
    assert metrics_in(half, batches) == metrics_in(wide, batches)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llava-llama", torch.float16), *((family, torch.bfloat16) for family in BUILDERS)],
)
def test_a_layer_at_a_time_gives_the_same_numbers_where_they_do_not(
    family: str,
    dtype: torch.dtype,
    conversations: list[Conversation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = save_lively_model(tmp_path, family, dtype)
    batches, ranking = batches_for(family, conversations), random_ranking(read_anatomy(half))
    expected = metrics_of(load_model(half, dtype=torch.float32), batches, ranking)
    monkeypatch.setattr("pruning.forward.free_memory.free_memory_bytes", lambda: 1000.0)
    model = load_for_compute(half)
    assert {x.dtype for x in model.parameters()} == {dtype}
    with half_products() as products:
        found = metrics_of(model, batches, ranking)
    assert products == []
    assert found.kl == pytest.approx(expected.kl, rel=1e-5)
    assert found.nll == pytest.approx(expected.nll, rel=1e-5)
    assert (found.accuracy, found.num_tokens, found.num_answers) == (
        expected.accuracy,
        expected.num_tokens,
        expected.num_answers,
    )


@pytest.mark.usefixtures("little_memory")
def test_whole_passes_are_wide_and_leave_the_model_as_it_was(conversations: list[Conversation], tmp_path: Path) -> None:
    half, wide = halved(tmp_path, torch.bfloat16)
    batches = batches_for("llava-llama", conversations)
    model = load_for_compute(half)
    with half_products() as products:
        found = evaluate_model(model, batches)
    assert products == []
    assert found.nll == pytest.approx(evaluate_model(load_model(wide), batches).nll, rel=1e-4)
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("fits", [True, False])
def test_weights_in_few_bits_have_the_values_that_were_rounded(
    fits: bool, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = save_wide_checkpoint(tmp_path)
    batches = batches_for("llava-llama", conversations)
    rounded = cut_and_rounded(dense, BITS)
    ranking = random_ranking(read_anatomy(dense))
    prune_checkpoint(dense, plan_of(dense, BITS), ranking, tmp_path / "packed")
    if not fits:
        monkeypatch.setattr("pruning.forward.free_memory.free_memory_bytes", lambda: 1000.0)
    model = load_for_compute(tmp_path / "packed")
    assert {x.dtype for x in model.parameters()} == {torch.float32 if fits else torch.bfloat16}
    found = model.state_dict()
    assert all(torch.equal(found[name], x.to(found[name].dtype)) for name, x in rounded.state_dict().items())
    reference = load_model(dense)
    expected = evaluate_model(rounded, batches, reference)
    assert expected.kl > 0
    assert evaluate_model(model, batches, reference).kl == pytest.approx(expected.kl, rel=1e-5)


@pytest.mark.parametrize(("stored", "said"), [(torch.float32, "float16"), (torch.bfloat16, "float32")])
def test_the_files_decide_where_the_config_says_another_type(
    stored: torch.dtype, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model", "llama")
    load_model(folder).to(stored).save_pretrained(folder)
    expected = load_model(folder, dtype=torch.float32).state_dict()
    assert load_for_compute(folder) is not None
    assert capsys.readouterr().err == ""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": said}))
    found = load_for_compute(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    name = str(stored).removeprefix("torch.")
    assert f"config.json says {said}, but the weights are {name}" in capsys.readouterr().err


@pytest.mark.parametrize("family", BUILDERS)
def test_a_half_twin_is_ranked_as_its_float32_copy(
    family: str, conversations: list[Conversation], tmp_path: Path
) -> None:
    folders: list[Path] = []
    for name, dtype in (("half", torch.bfloat16), ("wide", torch.float32)):
        source = folders[0] if folders else save_tiny_checkpoint(tmp_path / "dense", family)
        folders.append(tmp_path / name)
        load_model(source, dtype=dtype).save_pretrained(folders[-1])
    batches = batches_for(family, conversations)
    rows = sum(len(batch.inputs["input_ids"]) for batch in batches)
    half, wide = (
        measure_activations(CheckpointLayers(folder, torch.device("cpu")), batches, num_rows=rows) for folder in folders
    )
    of_files = CheckpointLayers(folders[0], torch.device("cpu"))
    blocks = [
        x
        for name, x in of_files.model.named_parameters()
        if re.search(r"(vision|visual).*(blocks|layers?)\.\d+\.", name)
    ]
    assert {x.dtype for x in blocks} <= {torch.bfloat16}  # widened while they run
    assert bool(blocks) == hasattr(of_files.model.config, "vision_config")
    for name, array in wide.items():
        np.testing.assert_array_equal(half[name], array, err_msg=name)


def test_a_half_twin_of_the_reference_gets_the_plans_of_its_float32_copy(
    repository: Repository, tmp_path: Path
) -> None:
    """Registered, searched and asked for: the widths, and the samples that they come from."""
    reference = Path(__file__).parents[3] / "reference"
    talks = load_conversations(reference / "data" / "calibration.json", 6)
    settings = SearchSettings(sparsities=(0.5,), num_evaluations=4, num_levels=2)
    plans, samples = [], []
    for name, dtype in (("half", torch.bfloat16), ("wide", torch.float32)):
        source = tmp_path / "half" if name == "wide" else reference / "model"
        folder = tmp_path / name
        shutil.copytree(reference / "model", folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        load_model(source, dtype=dtype).save_pretrained(folder)
        register_model(repository, name, folder, talks)
        search_model(repository, name, talks, settings, name="calibration")
        planner = Planner(repository, PredictorCache(repository, capacity=1))
        asked = [PlanRequest(model=name, sparsity=0.5, method=method) for method in METHODS]
        plans.append([planner.plan(request).layers for request in asked])
        samples.append([(x.architecture, x.metrics) for x in repository.list_samples(name)])
    assert plans[0] == plans[1]
    assert samples[0] == samples[1]
