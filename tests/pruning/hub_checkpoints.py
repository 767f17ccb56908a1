"""Small checkpoints in the layout of the hub's: configs as they are published there, old names, what old exports hold.

`hub_layouts/` has a config.json for each, with the fields that its repository gives, and no others: most leave out what
the classes of their day had as a default, and what has changed its name since (`torch_dtype`, `rope_scaling`) is there
as it was. Only sizes are made smaller here. Tensors get the names that they have in those files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pruning.anatomy.model_class import model_class
from pruning.checkpoints.anatomy_reader import load_config

LAYOUTS = Path(__file__).parent / "hub_layouts"
WEIGHTS = "model.safetensors"
HEAD, EMBEDDINGS = "lm_head.weight", "embed_tokens.weight"

Tensors = dict[str, torch.Tensor]

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 128,
}
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_PATCHES = {"depth": 2, "num_heads": 2, "patch_size": 8}
_PICTURE = {"image_size": 32, "patch_size": 8}
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


@dataclass(frozen=True)
class HubLayout:
    """How a checkpoint of the hub differs from what transformers saves today.

    Attributes:
        text, vision, top: sizes that are made smaller, of the language model, of the tower, and of the whole.
        tower: what its files call the vision tower where transformers says `vision_tower.`.
        extra: tensors that its files hold besides the model's parameters.
    """

    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=lambda: {**_TOWER, **_PICTURE})
    top: Mapping[str, Any] = field(default_factory=dict)
    tower: str = "vision_tower."
    extra: Callable[[], Tensors] = dict


def _position_ids() -> Tensors:
    return {"vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None]}


def _inverse_frequencies() -> Tensors:
    """Llama 2's, in float32 beside weights of another dtype."""
    return {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4) for layer in range(4)}


_OLD_TOWER = "vision_tower.vision_model."
_GROUPED = {"num_key_value_heads": 2}
_IMAGE_TOKEN = {"image_token_index": 3}
_QWEN_IDS = {"image_token_id": 3, "video_token_id": 6, "vision_start_token_id": 4, "vision_end_token_id": 5}

HUB_LAYOUTS: Mapping[str, HubLayout] = {
    "llava-1.5-7b-hf": HubLayout(top={**_IMAGE_TOKEN, "pad_token_id": 0}, tower=_OLD_TOWER, extra=_position_ids),
    "llava-v1.6-mistral-7b-hf": HubLayout(text=_GROUPED, top=_IMAGE_TOKEN, tower=_OLD_TOWER),
    "llava-onevision-qwen2-0.5b-ov-hf": HubLayout(text=_GROUPED, top={**_IMAGE_TOKEN, "video_token_index": 6}),
    "Qwen2-VL-7B-Instruct": HubLayout(
        text=_GROUPED | _MROPE, vision={**_PATCHES, "embed_dim": 16, "hidden_size": 32}, top=_QWEN_IDS
    ),
    "Qwen2.5-VL-3B-Instruct": HubLayout(
        text=_GROUPED | _MROPE,
        vision={**_PATCHES, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32},
        top=_QWEN_IDS,
    ),
    "InternVL3-8B-hf": HubLayout(
        text=_GROUPED, vision={**_TOWER, "image_size": [32, 32], "patch_size": [8, 8]}, top={"image_token_id": 3}
    ),
    "paligemma-3b-pt-224": HubLayout(
        text={"head_dim": 16, "num_key_value_heads": 1},
        top={**_IMAGE_TOKEN, "hidden_size": 32, "projection_dim": 32},
        vision={**_TOWER, **_PICTURE, "projection_dim": 32},
        tower=_OLD_TOWER,
    ),
    "gemma-3-4b-it": HubLayout(
        text={"head_dim": 16, **_GROUPED},
        top={**_IMAGE_TOKEN, "boi_token_index": 4, "eoi_token_index": 5, "mm_tokens_per_image": 4},
        tower=_OLD_TOWER,
    ),
    "Mistral-Small-3.1-24B-Instruct-2503": HubLayout(
        text={"head_dim": 16, **_GROUPED}, vision={**_TOWER, **_PICTURE, "head_dim": 8}, top=_IMAGE_TOKEN
    ),
    "SmolVLM-Instruct": HubLayout(text={"head_dim": 8, "num_key_value_heads": 4}, top={"image_token_id": 3}),
    "Llama-2-7b-hf": HubLayout(text={"num_key_value_heads": 4}, extra=_inverse_frequencies),
    "Llama-3.2-1B": HubLayout(text={"head_dim": 8, **_GROUPED}),
    "Phi-3-mini-4k-instruct": HubLayout(text={"num_key_value_heads": 4}),
}


def save_hub_checkpoint(folder: Path, name: str) -> Path:
    """A small, random checkpoint in the layout of `name`."""
    layout = HUB_LAYOUTS[name]
    document = _shrunken(json.loads((LAYOUTS / f"{name}.json").read_text(encoding="utf-8")), layout)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    torch.manual_seed(0)
    model = model_class(config := load_config(folder))(config)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    change_tensors(folder, lambda tensors: {_hub_name(x, layout): t for x, t in tensors.items()} | layout.extra())
    return folder


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Write the weights of `folder` anew."""
    changed = change(load_file(folder / WEIGHTS))
    save_file({name: x.contiguous() for name, x in changed.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def head_name(folder_tensors: Mapping[str, Any]) -> str:
    """What the head beside these tensors is, or would be, called."""
    embeddings = next(name for name in folder_tensors if name.endswith(EMBEDDINGS))
    prefix = embeddings.removesuffix(EMBEDDINGS)
    return (prefix.removesuffix("model.") if prefix.startswith("language_model.") else "") + HEAD


def _shrunken(document: dict[str, Any], layout: HubLayout) -> dict[str, Any]:
    text = document.get("text_config", document)
    text.update({**_TEXT, **_tokens(text), **layout.text})
    if "vision_config" in document:
        document["vision_config"].update(layout.vision)
    if text is not document and "vocab_size" in document:
        document["vocab_size"] = _TEXT["vocab_size"]
    return {**document, **layout.top}


def _tokens(text: Mapping[str, Any]) -> dict[str, int]:
    """Ids of special tokens, as many as the config gives, within the smaller vocabulary."""
    return {name: i for i, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")) if name in text}


def _hub_name(name: str, layout: HubLayout) -> str:
    return layout.tower + name.removeprefix("vision_tower.") if name.startswith("vision_tower.") else name
