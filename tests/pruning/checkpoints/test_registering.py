"""What transformers does by itself once it is registered, and what it leaves as it was.

That every family loads, equal to `lop.load_pruned`, is held in tests/pruning/cutting.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

import lop
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_processor
from pruning.checkpoints.registering import TESTED, is_registered
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import CheckpointError, UnsupportedModelError, UnsupportedVersionError
from pruning.planning.plan import BIAS
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, kept_groups, logits_of, plan_for, random_ranking, text_inputs
from tests.pruning.reloading import digest
from tests.tiny_models import save_tiny_checkpoint


def pruned(folder: Path, family: str) -> Path:
    """A checkpoint with other widths and heads in every layer."""
    dense = save_tiny_checkpoint(folder / f"{family}-dense", family)
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    return prune_checkpoint(dense, plan, ranking, folder / f"{family}-pruned")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tmp_path_factory.mktemp("registering"), "llama")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tmp_path_factory.mktemp("registering"), "llava-llama")


def changed_config(folder: Path, place: Path, **changed: Any) -> Path:
    """A copy of `folder` at `place` whose config.json says something else."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    document = json.loads((place / "config.json").read_text()) | changed
    (place / "config.json").write_text(json.dumps(document))
    return place


def test_without_it_transformers_stops_at_the_first_shape(llama: Path) -> None:
    assert not is_registered()
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(llama)


def test_a_dense_model_is_what_it_was(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense", "llava-llama")
    before = AutoModelForImageTextToText.from_pretrained(dense)
    request.getfixturevalue("registered")
    after = AutoModelForImageTextToText.from_pretrained(dense)
    assert digest(after.state_dict()) == digest(before.state_dict())
    assert after.config.to_dict() == before.config.to_dict()
    assert [type(x) for x in after.modules()] == [type(x) for x in before.modules()]
    after.save_pretrained(tmp_path / "after")
    before.save_pretrained(tmp_path / "before")
    for path in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("version", ["5.22.1", "5.25.0", "5.230.0", "6.0.0"])
def test_another_version_is_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(
        UnsupportedVersionError, match=rf"5\.23 or 5\.24.*transformers {version}.*load_pruned"
    ) as caught:
        lop.register_transformers()
    assert isinstance(caught.value, ImportError)
    assert not is_registered()


def test_the_pin_allows_the_tested_versions_and_no_other() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    pins = map(Requirement, pyproject["project"]["optional-dependencies"]["apply"])
    pin = next(pin for pin in pins if pin.name == "transformers").specifier
    minors = [f"5.{minor}" for minor in range(20, 40)]
    assert [minor for minor in minors if f"{minor}.1" in pin] == list(TESTED)
    assert "6.0.0" not in pin


def test_registering_again_changes_nothing(registered: None) -> None:
    first = PreTrainedModel.post_init
    lop.register_transformers()
    assert PreTrainedModel.post_init is first


def test_models_are_built_from_a_config_alone(llama: Path, registered: None) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(llama)
    built = AutoModelForCausalLM.from_config(loaded.config)
    shapes = {name: tuple(x.shape) for name, x in loaded.named_parameters()}
    assert {name: tuple(x.shape) for name, x in built.named_parameters()} == shapes
    assert all(torch.isfinite(x).all() for x in built.parameters())  # what was cut was drawn anew, too
    assert sorted({decoder_view(built).ffn_width(layer) for layer in range(4)}) == sorted(WIDTHS)


def test_other_heads_on_the_same_decoder(llama: Path, llava: Path, registered: None) -> None:
    whole = AutoModelForCausalLM.from_pretrained(llama)
    trunk = AutoModel.from_pretrained(llama)
    assert digest(trunk.state_dict()) == digest(whole.model.state_dict())
    classifier = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=3)
    assert digest(classifier.model.state_dict()) == digest(whole.model.state_dict())
    assert classifier(**text_inputs()).logits.shape == (1, 3)
    without_head = AutoModel.from_pretrained(llava).language_model
    assert digest(without_head.state_dict()) == digest(lop.load_pruned(llava).model.language_model.state_dict())


def test_a_pipeline_answers_as_load_pruned(llama: Path, llava: Path, registered: None) -> None:
    text = pipeline("text-generation", model=str(llama))
    tokens = text.tokenizer("what is it?", return_tensors="pt")
    expected = lop.load_pruned(llama).generate(**tokens, do_sample=False, max_new_tokens=5)
    found = text("what is it?", do_sample=False, max_new_tokens=5, return_tensors=True)
    assert found[0]["generated_token_ids"] == expected[0].tolist()
    processor = load_processor(llava)
    see = pipeline("image-text-to-text", model=str(llava), processor=processor)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    prompt = "<|user|><image>what is it?<|assistant|>"
    inputs = processor(text=prompt, images=[picture], return_tensors="pt")
    expected = lop.load_pruned(llava).generate(**inputs, do_sample=False, max_new_tokens=5)
    settings = {"do_sample": False}
    found = see(images=picture, text=prompt, max_new_tokens=5, generate_kwargs=settings, return_tensors=True)
    assert found[0]["generated_token_ids"].tolist() == expected[0].tolist()


def test_trainer_trains_saves_and_goes_on(llama: Path, tmp_path: Path, registered: None) -> None:
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    rows = [{"input_ids": list(range(7, 19)), "labels": list(range(7, 19))}] * 4

    def trainer(model: PreTrainedModel, steps: int) -> Trainer:
        arguments = TrainingArguments(
            tmp_path / "runs", max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True
        )
        return Trainer(model=model, args=arguments, train_dataset=rows)

    trained = trainer(AutoModelForCausalLM.from_pretrained(llama), 2)
    trained.train()
    saved = tmp_path / "runs" / "checkpoint-2"
    again = AutoModelForCausalLM.from_pretrained(saved)
    assert digest(again.state_dict()) == digest(lop.load_pruned(saved).state_dict())
    assert digest(again.state_dict()) != digest(lop.load_pruned(llama).state_dict())
    resumed = trainer(AutoModelForCausalLM.from_pretrained(llama), 3)
    resumed.train(resume_from_checkpoint=str(saved))
    assert resumed.state.global_step == 3


def test_biases_come_from_the_weight_files(checkpoint: Path, tmp_path: Path, registered: None) -> None:
    anatomy = read_anatomy(checkpoint)
    rng = np.random.default_rng(0)
    scores, means = ([rng.random(x.ffn_width) for x in anatomy.layers] for _ in range(2))
    ranking = Ranking.from_scores(anatomy, scores, means=means)
    plan = plan_for(anatomy, ranking, WIDTHS).model_copy(update={"recovery": (BIAS,)})
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "pruned")
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert any(name.endswith("down_proj.bias") for name in model.state_dict())
    assert torch.equal(logits_of(model, text_inputs()), logits_of(lop.load_pruned(out), text_inputs()))
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert digest(again.state_dict()) == digest(model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0": {"skip": ["mlp"]}, "1": {"intermediate_size": 8}}, "unexpected, first model.layers.0.mlp"),
        (None, "missing, first model.layers.2.mlp.up_proj.weight"),
    ],
)
def test_files_that_are_not_the_configs_are_refused(
    change: dict[str, Any] | None, message: str, llama: Path, tmp_path: Path, registered: None
) -> None:
    """transformers alone would warn, and draw what is missing at random."""
    recorded = json.loads((llama / "config.json").read_text())["per_layer_config"]
    broken = changed_config(llama, tmp_path / "broken", per_layer_config=recorded | (change or {}))
    if change is None:
        weights = load_file(broken / "model.safetensors")
        del weights["model.layers.2.mlp.up_proj.weight"]
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(broken, ignore_mismatched_sizes=True)


def test_layers_that_differ_in_something_else_are_refused_by_name(
    llama: Path, tmp_path: Path, registered: None
) -> None:
    other = changed_config(llama, tmp_path / "other", per_layer_config={"0": {"rms_norm_eps": 0.5}})
    with pytest.raises(UnsupportedModelError, match=r"per_layer_config also has rms_norm_eps"):
        AutoModelForCausalLM.from_pretrained(other)
