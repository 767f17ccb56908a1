"""What evaluators are built from, and where they run."""

import dataclasses
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from engines.local import LocalEngine
from lop.workflows.engines import (
    PROCESS_BYTES,
    Engine,
    EngineOptions,
    EvaluatorRecipe,
    check_engine,
    evaluator_memory_bytes,
)
from pruning.anatomy.architecture import DENSE
from pruning.data.conversations import load_conversations
from pruning.errors import CheckpointError, DatasetError, FingerprintMismatchError, InputError, MissingExtraError
from pruning.measuring.rounded_weights import DEFAULT_ROUNDED_BYTES
from pruning.measuring.solved_outputs import DEFAULT_SOLVED_BYTES
from storage.contract import Repository
from storage.records import RankingOrigin
from tests.tiny_models import write_conversations


@pytest.fixture
def recipe(repository: Repository, data: Path) -> EvaluatorRecipe:
    model = repository.get_model("tiny")
    ranking = repository.get_artifact(model.ranking_sha256).content
    return EvaluatorRecipe.of(model, ranking, load_conversations(data))


def test_local_results_come_one_by_one(recipe: EvaluatorRecipe) -> None:
    engine, narrow = LocalEngine(recipe), recipe.model.anatomy.architecture((8, 48, 48, 16))
    results = engine([DENSE, narrow, DENSE])
    first = next(results)
    assert (first.metrics.kl, first.metrics.num_answers) == (0.0, 80)
    assert [x.metrics for x in (first, *results)] == recipe()([DENSE, narrow, DENSE])


def test_images_are_found_from_any_folder(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_conversations(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    relative = load_conversations("conversations.json")
    assert relative[0].image == Path("images/0.png")
    found = EvaluatorRecipe.of(repository.get_model("tiny"), b"", relative).conversations
    assert [c.image for c in found] == [tmp_path / "images/0.png", tmp_path / "images/1.png", None]


def test_what_a_machine_lacks_is_named(recipe: EvaluatorRecipe, repository: Repository, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(recipe.model, path=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"on every machine.*absent"):
        dataclasses.replace(recipe, model=elsewhere)()
    with pytest.raises(FingerprintMismatchError, match="must not change"):
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights_sha256="0" * 64))()
    conversations = load_conversations(write_conversations(tmp_path, 3))
    ours = EvaluatorRecipe.of(recipe.model, recipe.ranking, conversations)
    first, second = (tmp_path / "images" / f"{index}.png" for index in range(2))
    first.write_bytes(second.read_bytes())
    with pytest.raises(DatasetError, match="must be the same on every machine"):
        ours()
    first.unlink()
    with pytest.raises(DatasetError, match=r"same path on every machine.*images/0.png: No such file"):
        ours()


def test_memory_is_that_of_the_weights_and_a_process(recipe: EvaluatorRecipe) -> None:
    weights = load_file(Path(recipe.model.path) / "model.safetensors")
    expected = sum(tensor.nbytes for tensor in weights.values())
    assert 100_000 < expected == evaluator_memory_bytes(dataclasses.replace(recipe, cache_bytes=7)) - 7 - PROCESS_BYTES
    assert evaluator_memory_bytes(recipe) == expected + 2**29 + PROCESS_BYTES


def test_rounded_weights_take_memory_too(recipe: EvaluatorRecipe) -> None:
    rounding = dataclasses.replace(recipe, has_bits=True)
    without = evaluator_memory_bytes(recipe)
    # All projections of the decoder at once, those of attention and FFNs; what is kept may be of other bits.
    weights = load_file(Path(recipe.model.path) / "model.safetensors")
    projections = [x for name, x in weights.items() if "language_model" in name and "_proj" in name]
    assert len(projections) == 7 * recipe.model.anatomy.num_layers
    of_all = sum(tensor.nbytes for tensor in projections)
    assert evaluator_memory_bytes(rounding) - without == DEFAULT_ROUNDED_BYTES + of_all


def test_solving_takes_memory_too(recipe: EvaluatorRecipe) -> None:
    """Beside what is kept, H of the widest projection and its solve, with nearly all of its inputs kept."""
    origin = RankingOrigin("activations", "a" * 64, reconstructs=True)
    model = dataclasses.replace(recipe.model, ranking_origin=origin)
    outputs, inputs = recipe.model.anatomy.hidden_size, max(x.ffn_width for x in recipe.model.anatomy.layers)
    more = evaluator_memory_bytes(dataclasses.replace(recipe, model=model)) - evaluator_memory_bytes(recipe)
    assert more == DEFAULT_SOLVED_BYTES + 32 * inputs * (inputs + outputs)


def test_options_of_ray_are_refused_without_it() -> None:
    assert EngineOptions(Engine.RAY, "auto", 2).actors == 2
    for options in ({"address": "auto"}, {"actors": 2}):
        with pytest.raises(InputError, match="are for Ray"):
            EngineOptions(**options)


def test_an_engine_is_checked_before_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_engine(EngineOptions())
    check_engine(EngineOptions(Engine.RAY, "10.0.0.1:6379"))
    with pytest.raises(InputError, match="names a host and a port"):
        check_engine(EngineOptions(Engine.RAY, "head"))
    for module in ("engines.ray.engine", "engines.ray.session"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "lop-service\[ray\]"'):
        check_engine(EngineOptions(Engine.RAY))
