"""The vision part as an mmproj file: keys, tensors, and towers that are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import (
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from pruning.cutting.gguf.export import GgufExport, export_gguf
from pruning.cutting.gguf.options import ClassToken, TensorType
from pruning.errors import CheckpointError, UnsupportedModelError
from tests.tiny_models import save_tiny_checkpoint, text, tiny_processor
from tests.tiny_models.builders import clip_tower, siglip_tower, tiny_model
from tests.tiny_models.hub_folders import save_hub_folder


def save_llava(folder: Path, tower: str = "clip", **changed: Any) -> Path:
    """A LLaVA with a tower of two blocks of width 16 that looks at 2 x 2 patches."""
    torch.manual_seed(0)
    settings = {
        "vision_config": {"clip": clip_tower, "siglip": siglip_tower}[tower](),
        "text_config": text.llama(),
        "image_token_index": 3,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
        **changed,
    }
    LlavaForConditionalGeneration(LlavaConfig(**settings)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def export(folder: Path, out: Path, **options: Any) -> tuple[GgufExport, dict[str, Any], dict[str, np.ndarray]]:
    """The export, the mmproj file's metadata, and its tensors as float32 in PyTorch's shape."""
    out.mkdir(exist_ok=True)
    made = export_gguf(folder, out / "a.gguf", mmproj=out / "b.gguf", tensor_type=TensorType.F32, **options)
    reader = GGUFReader(out / "b.gguf")
    tensors = {x.name: x.data.reshape([int(n) for n in reversed(x.shape)]) for x in reader.tensors}
    return made, {name: field.contents() for name, field in reader.fields.items()}, tensors


def weights(folder: Path) -> dict[str, np.ndarray]:
    """What is not the language model's, names without prefixes."""
    found = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for prefix in ("vision_tower.vision_model.", "vision_tower.", "multi_modal_projector."):
            if prefix in name:
                found[name.rpartition(prefix)[2]] = tensor.numpy()
                break
    return found


def test_keys_and_tensors_of_a_clip_tower(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m")
    made, fields, tensors = export(folder, tmp_path, class_token=ClassToken.FIRST)
    source = weights(folder)
    assert fields["general.architecture"] == "clip"
    assert fields["clip.has_vision_encoder"] is True
    assert fields["clip.projector_type"] == "mlp"
    assert fields["clip.use_gelu"] is False  # CLIP's quick GELU is what is assumed
    assert (fields["clip.vision.image_size"], fields["clip.vision.patch_size"]) == (32, 16)
    assert (fields["clip.vision.embedding_length"], fields["clip.vision.feed_forward_length"]) == (16, 32)
    assert (fields["clip.vision.block_count"], fields["clip.vision.feature_layer"]) == (1, [1])
    assert fields["clip.vision.projection_dim"] == 32
    assert fields["clip.vision.attention.head_count"] == 2
    assert fields["clip.vision.image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert np.array_equal(tensors["v.patch_embd.weight"], source["embeddings.patch_embedding.weight"])
    assert np.array_equal(tensors["v.class_embd"], source["embeddings.class_embedding"])
    assert np.array_equal(tensors["v.position_embd.weight"], source["embeddings.position_embedding.weight"])
    assert np.array_equal(tensors["v.pre_ln.bias"], source["pre_layrnorm.bias"])
    assert np.array_equal(tensors["v.blk.0.ffn_up.weight"], source["encoder.layers.0.mlp.fc1.weight"])
    assert np.array_equal(tensors["v.blk.0.ffn_down.bias"], source["encoder.layers.0.mlp.fc2.bias"])
    assert np.array_equal(tensors["v.blk.0.attn_out.weight"], source["encoder.layers.0.self_attn.out_proj.weight"])
    assert np.array_equal(tensors["mm.0.weight"], source["linear_1.weight"])
    assert np.array_equal(tensors["mm.2.bias"], source["linear_2.bias"])
    assert not [name for name in tensors if name.startswith(("v.blk.1.", "v.post_ln"))]
    assert made.mmproj_bytes == (tmp_path / "b.gguf").stat().st_size
    assert any("class token first" in note for note in made.notes)


def test_positions_for_releases_that_put_the_class_token_last(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m")
    made, _, tensors = export(folder, tmp_path)
    positions = weights(folder)["embeddings.position_embedding.weight"]
    assert np.array_equal(tensors["v.position_embd.weight"], np.concatenate([positions[1:], positions[:1]]))
    assert any("#25814" in note and "--class-token first" in note for note in made.notes)


def test_a_siglip_tower(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m", "siglip", vision_feature_layer=-1)
    made, fields, tensors = export(folder, tmp_path)
    source = weights(folder)
    assert fields["clip.use_gelu"] is True
    assert (fields["clip.vision.block_count"], fields["clip.vision.feature_layer"]) == (2, [2])
    assert np.array_equal(tensors["v.patch_embd.bias"], source["embeddings.patch_embedding.bias"])
    assert np.array_equal(tensors["v.position_embd.weight"], source["embeddings.position_embedding.weight"])
    assert not {"v.class_embd", "v.pre_ln.weight", "v.post_ln.weight"} & set(tensors)
    assert not any("#25814" in note for note in made.notes)


def test_a_projector_without_biases_gets_zeros(tmp_path: Path) -> None:
    _, _, tensors = export(save_llava(tmp_path / "m", multimodal_projector_bias=False), tmp_path)
    assert not tensors["mm.0.bias"].any()
    assert not tensors["mm.2.bias"].any()
    assert tensors["mm.0.bias"].shape == tensors["mm.2.bias"].shape == (32,)


def test_matrices_have_the_asked_type_and_what_is_added_is_f32(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m")
    export_gguf(folder, tmp_path / "a.gguf", mmproj=tmp_path / "b.gguf", tensor_type=TensorType.Q8_0)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "b.gguf").tensors}
    assert kinds["v.blk.0.ffn_down.weight"] == "Q8_0"  # rows of 32
    assert kinds["v.blk.0.ffn_up.weight"] == "F16"  # rows of 16
    assert {kinds[name] for name in ("v.patch_embd.weight", "v.position_embd.weight", "v.class_embd")} == {"F32"}


@pytest.mark.parametrize(
    ("tower", "changed", "reason"),
    [
        ("clip", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ("siglip", {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy='default'"),
        ("clip", {"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ("clip", {"vision_feature_layer": [-1, -2]}, "ascending order"),
        ("clip", {"vision_feature_layer": 0}, "ascending order"),
    ],
)
def test_what_mtmd_would_compute_otherwise(tmp_path: Path, tower: str, changed: dict[str, Any], reason: str) -> None:
    folder = save_llava(tmp_path / "m", tower, **changed)
    with pytest.raises(UnsupportedModelError, match=reason):
        export(folder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("llava-next", "llava_next.*newline"),
        ("llava-onevision", "llava_onevision.*tiles"),
    ],
)
def test_other_ways_of_seeing_by_name(tmp_path: Path, family: str, reason: str) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", family)
    with pytest.raises(UnsupportedModelError, match=reason):
        export(folder, tmp_path)


def save_internvl(folder: Path, **vision: Any) -> Path:
    """A tiny InternVL3 whose tower is that of `vision`, where it says something else."""

    def build(family: str) -> PreTrainedModel:
        config = tiny_model(family).config
        for name, value in vision.items():
            setattr(config.vision_config, name, value)
        return InternVLForConditionalGeneration(config)

    return save_hub_folder(folder, "InternVL3", build=build)


def test_a_smolvlm(tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "m", "SmolVLM2")
    made, fields, tensors = export(folder, tmp_path)
    source = load_file(folder / "model.safetensors")
    assert (fields["clip.projector_type"], fields["clip.use_gelu"]) == ("idefics3", True)
    assert (fields["clip.vision.block_count"], fields["clip.vision.projector.scale_factor"]) == (2, 2)
    assert (fields["clip.vision.image_size"], fields["clip.vision.preproc_image_size"]) == (32, 32)
    norm = source["model.vision_model.post_layernorm.weight"].numpy()
    assert np.array_equal(tensors["v.post_ln.weight"], norm)
    projection = source["model.connector.modality_projection.proj.weight"].numpy()
    assert np.array_equal(tensors["mm.model.fc.weight"], projection)
    assert any("do_image_splitting=false" in note for note in made.notes)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["max_image_size"]["longest_edge"] = 16
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match="tiles of 16, the tower's side 32"):
        export(folder, tmp_path / "other")


def test_an_internvl(tmp_path: Path) -> None:
    folder = save_internvl(tmp_path / "m", attention_bias=True, use_mean_pooling=False)
    made, fields, tensors = export(folder, tmp_path)
    assert made.notes == ()
    assert fields["clip.projector_type"] == "internvl"
    assert (fields["clip.vision.preproc_min_tiles"], fields["clip.vision.preproc_max_tiles"]) == (1, 12)
    assert tensors["v.class_embd"].shape == (16,)
    assert tensors["v.position_embd.weight"].shape == (17, 16)
    assert {"v.blk.1.ls2.weight", "v.blk.0.attn_q.bias", "v.post_ln.bias", "mm.model.mlp.3.weight"} <= set(tensors)
    others, _, of_others = export(folder, tmp_path / "first", class_token=ClassToken.FIRST)
    assert any("class token first" in note for note in others.notes)
    first = of_others["v.position_embd.weight"]
    assert np.array_equal(tensors["v.position_embd.weight"], np.roll(first, -1, axis=0))
    tiny_processor().save_pretrained(folder)
    with pytest.raises(CheckpointError, match="CLIPImageProcessorPil has no crop_to_patches"):
        export(folder, tmp_path / "other")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"use_qk_norm": True}, "use_qk_norm=True"),
        ({"norm_type": "rms_norm"}, "norm_type='rms_norm'"),
        ({"image_size": [32, 48]}, r"squares \(got .32, 48."),
        ({"use_mask_token": True}, "use_mask_token=True"),
    ],
)
def test_an_internvl_that_mtmd_would_compute_otherwise(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    folder = save_internvl(tmp_path / "m", **changed)
    with pytest.raises(UnsupportedModelError, match=reason):
        export(folder, tmp_path)


def test_a_qwen2_vl(tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "m", "Qwen2-VL")
    made, fields, tensors = export(folder, tmp_path)
    source = {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    tower = {name.rpartition("visual.")[2]: tensor for name, tensor in source.items() if "visual." in name}
    assert (fields["clip.projector_type"], fields["clip.vision.feed_forward_length"]) == ("qwen2vl_merger", 32)
    assert "clip.vision.n_wa_pattern" not in fields
    for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
        assert np.array_equal(tensors[name], tower["patch_embed.proj.weight"][:, :, frame])
    for third, name in enumerate(("attn_q", "attn_k", "attn_v")):
        rows = slice(16 * third, 16 * (third + 1))
        assert np.array_equal(tensors[f"v.blk.1.{name}.weight"], tower["blocks.1.attn.qkv.weight"][rows])
        assert np.array_equal(tensors[f"v.blk.1.{name}.bias"], tower["blocks.1.attn.qkv.bias"][rows])
    assert np.array_equal(tensors["mm.2.weight"], tower["merger.mlp.2.weight"])
    assert any("image processor 1 to 4: run it with --image-min-tokens 1 --image-max-tokens 4" in x for x in made.notes)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"fullatt_block_indexes": [0, 1]}, None),
        ({"fullatt_block_indexes": [1]}, None),
        ({"fullatt_block_indexes": [0]}, r"fullatt_block_indexes=\[0\] of 2 blocks"),
        ({"fullatt_block_indexes": []}, r"fullatt_block_indexes=\[\]"),
        ({"window_size": 64}, "window_size=64"),
        ({"hidden_act": "relu"}, "'relu'"),
    ],
)
def test_windows_of_a_qwen2_5_vl(tmp_path: Path, changed: dict[str, Any], reason: str | None) -> None:
    folder = save_hub_folder(tmp_path / "m", "Qwen2.5-VL")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= changed
    (folder / "config.json").write_text(json.dumps(config))
    if reason is None:
        fields = export(folder, tmp_path)[1]
        assert fields["clip.vision.n_wa_pattern"] == {2: 1, 1: 2}[len(changed["fullatt_block_indexes"])]
        return
    with pytest.raises(UnsupportedModelError, match=reason):
        export(folder, tmp_path)


def test_a_gemma3(tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "m", "Gemma-3")
    made, fields, tensors = export(folder, tmp_path)
    source = load_file(folder / "model.safetensors")
    projector = {name.rpartition("projector.")[2]: x.numpy() for name, x in source.items() if "projector." in name}
    assert (fields["clip.projector_type"], fields["clip.vision.projector.scale_factor"]) == ("gemma3", 2)
    assert np.array_equal(tensors["mm.input_projection.weight"], projector["mm_input_projection_weight"])
    assert np.array_equal(tensors["mm.soft_emb_norm.weight"], projector["mm_soft_emb_norm.weight"] + 1)
    assert "v.post_ln.bias" in tensors
    assert any("empty lines around a picture" in note for note in made.notes)
    export_gguf(folder, tmp_path / "c.gguf", mmproj=tmp_path / "d.gguf", tensor_type=TensorType.Q8_0)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "d.gguf").tensors}
    assert kinds["mm.input_projection.weight"] == "F16"  # llama.cpp transposes it


@pytest.mark.parametrize(
    ("changed", "reason"), [({"mm_tokens_per_image": 5}, "mm_tokens_per_image=5"), ({}, r"sides \[64\]")]
)
def test_a_gemma3_that_mtmd_would_see_otherwise(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    folder = save_hub_folder(tmp_path / "m", "Gemma-3")
    edit(folder / "config.json", **changed)
    if not changed:
        edit(folder / "preprocessor_config.json", size={"height": 64, "width": 64})
    with pytest.raises(UnsupportedModelError, match=reason):
        export(folder, tmp_path)


def test_a_qwen3_vl(tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "m", "Qwen3-VL")
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vision_config=config["vision_config"] | {"deepstack_visual_indexes": [0, 2]})
    _, fields, tensors = export(folder, tmp_path)
    source = {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    tower = {name.rpartition("visual.")[2]: tensor for name, tensor in source.items() if "visual." in name}
    assert (fields["clip.projector_type"], fields["clip.vision.image_size"]) == ("qwen3vl_merger", 32)
    assert fields["clip.vision.is_deepstack_layers"] == [True, False, True]
    for name, inside in (
        ("v.blk.2.attn_qkv.bias", "blocks.2.attn.qkv.bias"),
        ("v.position_embd.weight", "pos_embed.weight"),
        ("v.post_ln.weight", "merger.norm.weight"),
        ("mm.2.weight", "merger.linear_fc2.weight"),
        ("v.deepstack.2.fc1.weight", "deepstack_merger_list.1.linear_fc1.weight"),
        ("v.deepstack.0.norm.bias", "deepstack_merger_list.0.norm.bias"),
    ):
        assert np.array_equal(tensors[name], tower[inside])
    edit(folder / "config.json", vision_config=config["vision_config"] | {"deepstack_visual_indexes": [1, 0]})
    with pytest.raises(UnsupportedModelError, match=r"deepstack_visual_indexes=\[1, 0\]"):
        export(folder, tmp_path / "other")


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_an_activation_that_mtmd_has_not(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="'relu'"):
        export(folder, tmp_path)


def test_a_processor_of_another_size(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m")
    processor = tiny_processor()
    processor.image_processor.size = {"height": 64, "width": 64}
    processor.save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=r"sides \[64\]"):
        export(folder, tmp_path)


def test_a_missing_tensor(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "m")
    content = load_file(folder / "model.safetensors")
    gone = next(name for name in content if name.endswith("encoder.layers.0.layer_norm2.bias"))
    del content[gone]
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no encoder\.layers\.0\.layer_norm2\.bias"):
        export(folder, tmp_path)
