"""Checkpoints whose tensors are not those of the model that their config describes: refused before any is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.errors import CheckpointError, UnsupportedModelError
from tests.pruning.hub_checkpoints import Tensors, change_tensors
from tests.tiny_models import save_tiny_checkpoint

LAYER = "language_model.model.layers.1."
GATE, DOWN = f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "dense")


def changed(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    def apply(tensors: Tensors) -> Tensors:
        return tensors | {name: change(tensors[name])}

    change_tensors(folder, apply)
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (DOWN, lambda x: x.flatten()),
        (DOWN, lambda x: x[..., None]),
        (GATE, lambda x: x[:, :0]),
        (GATE, lambda x: x[:, :31]),
        (GATE, lambda x: x[:31]),
        (f"{LAYER}self_attn.k_proj.weight", lambda x: x[:8]),
        (f"{LAYER}input_layernorm.weight", lambda x: x[:31]),
        ("language_model.model.embed_tokens.weight", lambda x: x[:, :31]),
        ("language_model.lm_head.weight", lambda x: x[:31]),
        ("language_model.model.norm.weight", lambda x: x[None]),
    ],
)
def test_tensors_of_another_shape(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=rf"shapes that the config says.*{name}"):
        read_anatomy(changed(folder, name, change))


@pytest.mark.parametrize(
    ("missing", "error", "said"),
    [
        (GATE, UnsupportedModelError, r"layer 1 has no mlp\.gate_proj\.weight"),
        (f"{LAYER}input_layernorm.weight", UnsupportedModelError, r"layer 1 has no input_layernorm\.weight"),
        ("language_model.model.norm.weight", CheckpointError, r"every tensor of its model.*norm\.weight"),
        ("language_model.model.embed_tokens.weight", CheckpointError, r"every tensor.*embed_tokens\.weight"),
        ("language_model.lm_head.weight", CheckpointError, r"every tensor of its model.*lm_head\.weight"),
        ("multi_modal_projector.linear_1.bias", CheckpointError, r"every tensor of its model.*linear_1\.bias"),
        ("vision_tower.encoder.layers.1.mlp.fc1.bias", CheckpointError, r"every tensor of its model.*fc1\.bias"),
    ],
)
def test_missing_tensors(folder: Path, missing: str, error: type[Exception], said: str) -> None:
    def without(tensors: Tensors) -> Tensors:
        assert missing in tensors
        return {name: x for name, x in tensors.items() if name != missing}

    change_tensors(folder, without)
    with pytest.raises(error, match=said):
        read_anatomy(folder)


@pytest.mark.parametrize(
    "name",
    [
        "multi_modal_projector.linear_1.weight",
        "multi_modal_projector.linear_2.bias",
        "vision_tower.embeddings.position_embedding.weight",
        "vision_tower.encoder.layers.1.mlp.fc1.weight",
    ],
)
def test_vision_and_projector_tensors_of_another_size(folder: Path, name: str) -> None:
    sizes = []

    def shorter(x: torch.Tensor) -> torch.Tensor:
        sizes.extend([x[1:].numel(), x.numel()])
        return x[1:]

    changed(folder, name, shorter)
    ending = ".".join(name.split(".")[-2:])
    with pytest.raises(CheckpointError, match=rf"as many values.*{ending} has {sizes[0]}, should have {sizes[1]}"):
        read_anatomy(folder)


def test_reshaped_vision_tensors_are_left_to_transformers(folder: Path) -> None:
    """Qwen-VL's patches are stored for a convolution and loaded for a linear layer."""
    before = read_anatomy(folder)
    name = "vision_tower.embeddings.patch_embedding.weight"
    assert read_anatomy(changed(folder, name, lambda x: x.flatten(1))).layers == before.layers


@pytest.mark.parametrize(
    "name", ["multi_modal_projector.adapter.weight", "vision_tower.encoder.layers.1.mlp.fc1.lora_A", "optimizer.step"]
)
def test_tensors_that_no_part_of_the_model_has(folder: Path, name: str) -> None:
    change_tensors(folder, lambda tensors: tensors | {name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=rf"its model has not \(got 1 too many, among them {name}\)"):
        read_anatomy(folder)


def test_more_vision_layers_than_the_config_says(folder: Path) -> None:
    def more(tensors: Tensors) -> Tensors:
        last = {name: x for name, x in tensors.items() if name.startswith("vision_tower.encoder.layers.1.")}
        assert last
        return tensors | {name.replace(".1.", ".2.", 1): x.clone() for name, x in last.items()}

    change_tensors(folder, more)
    with pytest.raises(CheckpointError, match=r"its model has not \(got \d+ too many, among them .*layers\.2\."):
        read_anatomy(folder)


def test_buffers_that_the_model_computes_may_be_stored(folder: Path) -> None:
    from pruning.checkpoints.anatomy_reader import load_config
    from pruning.checkpoints.expected_tensors import _built

    before = read_anatomy(folder)
    buffers = {name for name, _ in _built(load_config(folder)).named_buffers()}
    assert buffers
    change_tensors(folder, lambda tensors: tensors | {name: torch.ones(3) for name in buffers})
    assert read_anatomy(folder).layers == before.layers


def test_scales_beside_weights(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors | {f"{GATE}_scale": torch.ones(48, 1)})
    with pytest.raises(UnsupportedModelError, match=r"layer 1 has an unknown mlp\.gate_proj\.weight_scale.*quantised"):
        read_anatomy(folder)


def test_biases_that_the_config_does_not_have(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors | {f"{LAYER}self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(UnsupportedModelError, match=r"layer 1 has an unknown self_attn\.q_proj\.bias"):
        read_anatomy(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_weights_that_are_integers(folder: Path, dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedModelError, match=r"floating-point numbers.*gate_proj.*unquantised"):
        read_anatomy(changed(folder, GATE, lambda x: x.to(dtype)))


def test_quantised_weights_that_only_the_text_config_tells_of(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["quantization_config"] = {"quant_method": "compressed-tensors"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"'compressed-tensors'.*unquantised"):
        read_anatomy(folder)


def test_a_config_that_no_model_can_be_built_from(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_act"] = "no-such-activation"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="able to build the model"):
        read_anatomy(folder)


def test_attention_kernels_that_are_not_installed_are_not_needed(folder: Path) -> None:
    path = folder / "config.json"
    before = read_anatomy(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "flash_attention_2"}))
    assert read_anatomy(folder) == before


def test_more_layers_than_the_files_hold_are_not_built(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**9
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"every decoder layer.*found 4"):
        read_anatomy(folder)


def test_reading_an_anatomy_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    read_anatomy(folder)
    assert torch.equal(torch.get_rng_state(), before)
