"""A pruned model that was changed and saved by transformers' own `save_pretrained`, as Trainer does, loads again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

import lop
from pruning.anatomy.layer_config import recorded_architecture
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import CheckpointError, InputError, UnsupportedModelError
from pruning.planning.plan import BIAS
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, kept_groups, next_token_logits, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint


def pruned(folder: Path, family: str = "llava-llama") -> Path:
    """A checkpoint with other widths and heads in every layer."""
    dense = save_tiny_checkpoint(folder / f"{family}-dense", family)
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    return prune_checkpoint(dense, plan, ranking, folder / f"{family}-pruned")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tmp_path_factory.mktemp("reloading"))


def trained(folder: Path) -> PreTrainedModel:
    """The model in `folder` after a step that changes every weight."""
    model = lop.load_pruned(folder).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


@pytest.mark.parametrize(
    "family", ["llava-llama", "llava-llama-tied", "llava-phi3", "qwen2.5-vl", "internvl-qwen2", "gemma3", "qwen2"]
)
def test_a_healed_model_loads_without_the_plan(tmp_path: Path, family: str) -> None:
    source = pruned(tmp_path, family)
    model = trained(source)
    model.save_pretrained(tmp_path / "healed", max_shard_size="20KB")
    assert not (tmp_path / "healed" / PLAN_NAME).exists()
    assert len(list((tmp_path / "healed").glob("*.safetensors"))) > 1
    again = lop.load_pruned(tmp_path / "healed")
    assert type(again) is type(model)
    assert torch.equal(next_token_logits(again), next_token_logits(model.eval()))
    assert recorded_architecture(again.config) == recorded_architecture(AutoConfig.from_pretrained(source))


def test_another_dtype_and_trainers_own_files(cut: Path, tmp_path: Path) -> None:
    model = trained(cut).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"x")
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    again = lop.load_pruned(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16
    saved = model.state_dict()  # logits differ: `to` also narrows buffers, which are computed anew
    assert all(torch.equal(x, saved[name]) for name, x in again.state_dict().items())


def test_biases_that_compensate_come_along(checkpoint: Path, tmp_path: Path) -> None:
    anatomy = read_anatomy(checkpoint)
    rng = np.random.default_rng(0)
    scores, means = ([rng.random(x.ffn_width) for x in anatomy.layers] for _ in range(2))
    ranking = Ranking.from_scores(anatomy, scores, means=means)
    plan = plan_for(anatomy, ranking, WIDTHS)
    plan = plan.model_copy(update={"recovery": (BIAS,)})
    model = trained(prune_checkpoint(checkpoint, plan, ranking, tmp_path / "pruned"))
    model.save_pretrained(tmp_path / "healed")
    again = lop.load_pruned(tmp_path / "healed")
    assert any(name.endswith("down_proj.bias") for name in again.state_dict())
    assert torch.equal(next_token_logits(again), next_token_logits(model.eval()))


def test_a_config_that_does_not_allow_reading_global_sizes(cut: Path, tmp_path: Path) -> None:
    """As other tools write `per_layer_config`: without the flag that transformers' model code needs."""
    model = lop.load_pruned(cut)
    model.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    del document["text_config"]["allow_global_per_layer_attribute_access"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert torch.equal(next_token_logits(lop.load_pruned(tmp_path)), next_token_logits(model))
    document["text_config"]["per_layer_config"]["0"]["hidden_size"] = 16
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match="hidden_size"):
        lop.load_pruned(tmp_path)


def test_a_dense_folder_is_refused_with_what_to_do(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"per_layer_config.*Load a dense checkpoint with transformers"):
        lop.load_pruned(checkpoint)


def test_weights_beside_the_dense_config_are_told_apart(cut: Path, tmp_path: Path) -> None:
    model = lop.load_pruned(cut)
    model.save_pretrained(tmp_path)
    (tmp_path / PLAN_NAME).write_bytes((cut / PLAN_NAME).read_bytes())
    document = json.loads((tmp_path / "config.json").read_text())
    del document["text_config"]["per_layer_config"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"mismatched.*per_layer_config"):
        lop.load_pruned(tmp_path)


AGREEING = [
    {"use_safetensors": True},
    {"local_files_only": True},
    {"output_loading_info": False},
    {"trust_remote_code": False},
    {"low_cpu_mem_usage": True},
    {"attn_implementation": "eager"},
    {"torch_dtype": torch.float16},
    {"state_dict": None},
    {"config": None},
    {"revision": "main"},
    {"subfolder": ""},
]


@pytest.mark.parametrize("arguments", AGREEING, ids=lambda x: next(iter(x)))
def test_what_agrees_is_taken(cut: Path, arguments: dict[str, object]) -> None:
    model = lop.load_pruned(cut, **arguments)
    assert recorded_architecture(model.config) is not None
    assert model.dtype == arguments.get("torch_dtype", torch.float32)


def test_a_subfolder_and_a_config_of_ones_own(cut: Path, checkpoint: Path) -> None:
    config = AutoConfig.from_pretrained(cut)
    config.text_config.bos_token_id = 5
    model = lop.load_pruned(cut.parent, subfolder=cut.name, config=config)
    assert model.config.text_config.bos_token_id == 5
    assert lop.load_pruned(cut, config=str(cut)).config.text_config.bos_token_id != 5
    with pytest.raises(InputError, match=r"sizes that the checkpoint records.*dense"):
        lop.load_pruned(cut, config=AutoConfig.from_pretrained(checkpoint))


CONTRADICTING = [
    {"use_safetensors": False},
    {"local_files_only": False},
    {"output_loading_info": True},
    {"trust_remote_code": True},
    {"state_dict": {"w": torch.zeros(2)}},
    {"ignore_mismatched_sizes": True},
    {"variant": "fp16"},
    {"gguf_file": "x.gguf"},
    {"pretrained_model_name_or_path": "x"},
    {"config": 3},
]


@pytest.mark.parametrize("arguments", CONTRADICTING, ids=lambda x: next(iter(x)))
def test_what_contradicts_is_refused_by_name(cut: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        lop.load_pruned(cut, **arguments)
    assert next(iter(arguments)) in str(caught.value)
    assert "\n" not in str(caught.value)
