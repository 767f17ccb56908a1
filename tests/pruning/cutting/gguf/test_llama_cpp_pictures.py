"""Pictures through llama.cpp's mtmd, against transformers. Skipped where llama-cpp-python is not installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.options import ClassToken, TensorType
from pruning.cutting.gguf.tensor_types import Float32Array
from tests.tiny_models import text, tiny_processor
from tests.tiny_models.builders import clip_tower, siglip_tower, tiny_model
from tests.tiny_models.hub_folders import save_hub_folder
from tests.tiny_models.wide import wide_model

pytest.importorskip("llama_cpp")

from tests.pruning.cutting.gguf.test_llama_cpp import cut


@pytest.mark.parametrize("feature_layer", [-1, -2, [1, 2]], ids=str)
def test_features_of_a_siglip_tower(tmp_path: Path, feature_layer: int | list[int]) -> None:
    expected, found = features(tmp_path, "siglip", feature_layer, "full")
    assert np.abs(expected - found).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("feature_layer", [-1, -2, [1, 2]], ids=str)
def test_features_of_a_clip_tower(tmp_path: Path, feature_layer: int | list[int]) -> None:
    """llama.cpp loses the first patch, and gives the class token's features last (ggml-org/llama.cpp#25814)."""
    expected, found = features(tmp_path, "clip", feature_layer, "default")
    if np.abs(expected - found).max() < 2e-3 * np.abs(expected).max():
        pytest.fail("this llama.cpp puts the class token first: make ClassToken.FIRST the default")
    assert np.abs(expected[1:] - found[:-1]).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "tile", "height", "width", "tokens"),
    [
        ("SmolVLM", 32, 64, 96, 28),  # of six tiles and the whole
        ("SmolVLM2", 34, 102, 68, 28),  # two pixels of each tile are no whole patch
        ("InternVL3", 32, 32, 32, 4),  # whose class token comes last: nothing is lost by it
        ("InternVL3", 32, 64, 96, 28),
        ("Qwen2-VL", 0, 48, 80, 15),
        ("Qwen2.5-VL", 0, 128, 176, 88),  # of several windows
        ("Qwen3-VL", 0, 48, 80, 15),
        ("Gemma-3", 0, 32, 32, 4),
    ],
)
def test_features_of_the_hubs_other_families(
    tmp_path: Path, name: str, tile: int, height: int, width: int, tokens: int
) -> None:
    from benchmarks.mtmd import SeeingModel

    def build(family: str) -> PreTrainedModel:
        model = tiny_model(family)
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model

    folder, files = save_hub_folder(tmp_path / "m", name, build=build), (tmp_path / "a.gguf", tmp_path / "b.gguf")
    settings = folder / "preprocessor_config.json"
    if "Smol" in name:
        splitting = {"do_image_splitting": True, "size": {"longest_edge": max(height, width)}}
        edit(settings, **splitting, max_image_size={"longest_edge": tile})
        vision = json.loads((folder / "config.json").read_text())["vision_config"]
        edit(folder / "config.json", vision_config={**vision, "image_size": tile})
    elif name == "Qwen3-VL":
        edit(settings, size={"shortest_edge": 256, "longest_edge": 10**6})
    elif "Qwen" in name:
        edit(settings, min_pixels=256, max_pixels=10**6)  # nothing is resized
    export_gguf(folder, files[0], tensor_type=TensorType.F32, mmproj=files[1])
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = load_processor(folder)
    inputs = processor.image_processor(picture, return_tensors="pt", **getattr(processor, "images_kwargs", {}))
    grid = {"image_grid_thw": inputs.image_grid_thw} if "Qwen" in name else {}
    with torch.inference_mode():
        seen: Any = load_model(folder, dtype=torch.float32)
        seen_features = seen.model.get_image_features(inputs.pixel_values, **grid)
    first = torch.cat([x.reshape(-1, 32) for x in seen_features.pooler_output])
    deep = [torch.cat(list(x)) for x in getattr(seen_features, "deepstack_features", None) or []]
    expected = torch.cat([first, *deep], dim=1).numpy()
    with SeeingModel(*files, context_length=128) as seeing:
        found = seeing.features(picture)
    assert found.shape == expected.shape == (tokens, 96 if name == "Qwen3-VL" else 32)
    assert np.abs(expected - found).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("prunes", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("name", ["Qwen3-VL", "Gemma-3"])
def test_answers_to_pictures(tmp_path: Path, name: str, *, prunes: bool) -> None:
    """Features in several decoder layers, and tokens of a picture that see each other inside a window."""
    from benchmarks.mtmd import SeeingModel

    folder = save_hub_folder(tmp_path / "m", name, build=wide_model)
    if name == "Qwen3-VL":
        edit(folder / "preprocessor_config.json", size={"shortest_edge": 256, "longest_edge": 10**6})
    if prunes:
        cut(folder, tmp_path / "cut", widths=[0, 8, 48, 40], kv_groups=[0, 1, 0, 2])  # the first layer is gone
        folder = tmp_path / "cut"
    files = (tmp_path / "a.gguf", tmp_path / "b.gguf")
    export_gguf(folder, files[0], tensor_type=TensorType.F32, mmproj=files[1])
    placed, around, height, width = {
        "Qwen3-VL": ("<|vision_start|><|image_pad|><|vision_end|>", "", 48, 80),
        "Gemma-3": ("<start_of_image>", "\n\n", 32, 32),
    }[name]
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = load_processor(folder)
    prompt = f"<|user|>red seven{placed}what is it?<|assistant|>"
    inputs = processor(images=Image.fromarray(picture), text=prompt, return_tensors="pt")
    with torch.inference_mode():
        model: Any = load_model(folder, dtype=torch.float32)
        expected = model(**inputs).logits[0, -1].numpy()
        blind = model(input_ids=inputs.input_ids).logits[0, -1].numpy()
    with SeeingModel(*files, context_length=128) as seeing:
        found = seeing.logits(f"<|user|>red seven{around}", picture, f"{around}what is it?<|assistant|>")
    assert np.abs(blind - expected).max() > 0.05 * np.abs(expected).max(), "the picture must matter"
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def features(
    folder: Path, tower: str, feature_layer: int | list[int], strategy: str
) -> tuple[Float32Array, Float32Array]:
    """[patches, hidden_size] of a picture, by transformers and by mtmd."""
    from benchmarks.mtmd import SeeingModel

    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config={"clip": clip_tower, "siglip": siglip_tower}[tower](),
            text_config=text.llama(),
            image_token_index=3,
            vision_feature_layer=feature_layer,
            vision_feature_select_strategy=strategy,
        )
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "m")
    processor = tiny_processor()
    processor.save_pretrained(folder / "m")
    export_gguf(
        folder / "m",
        folder / "a.gguf",
        tensor_type=TensorType.F32,
        mmproj=folder / "b.gguf",
        class_token=ClassToken.LAST,
    )
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = processor.image_processor(picture, return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = model.model.get_image_features(pixels).pooler_output[0].numpy()
    with SeeingModel(folder / "a.gguf", folder / "b.gguf", context_length=64) as seeing:
        return expected, seeing.features(picture)
