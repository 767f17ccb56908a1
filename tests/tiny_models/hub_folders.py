"""Tiny checkpoints with the processor files of the hub's repositories: their names, their keys, their classes.

Sizes are smaller; everything else is as published: one file for each part, image processors that want torchvision
(`...Fast`), a video processor where there is one, the template where that repository has it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedModel

from tests.tiny_models.builders import tiny_model
from tests.tiny_models.processor import TEMPLATE, tiny_tokenizer

_MEANS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_QWEN = {
    **_MEANS,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_QWEN_PIXELS = {"min_pixels": 256, "max_pixels": 1024}
_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
_QWEN_PROMPT = "<|vision_start|><|image_pad|><|vision_end|>"
_SQUARE = {"height": 32, "width": 32}
_SMOL_TOKENS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>")
_SMOL = {
    "do_convert_rgb": True,
    "do_image_splitting": False,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 32},
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 32},
}


@dataclass(frozen=True)
class HubFolder:
    """A repository's files.

    Attributes:
        model: the tiny model's family.
        placeholder: the token that stands for a part of a picture; the tiny tokenizer's fourth.
        prompt: what the template writes for a picture.
        tokens: others that the vocabulary has.
        names: of tokens, by what tokenizer_config.json calls them.
        files: JSON files beside the tokenizer's.
        template: the file that holds the chat template.
    """

    model: str
    placeholder: str
    prompt: str
    files: Mapping[str, Mapping[str, Any]]
    tokens: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    template: str = "chat_template.json"


HUB_FOLDERS: Mapping[str, HubFolder] = {
    "Qwen2-VL": HubFolder(
        "qwen2-vl",
        "<|image_pad|>",
        _QWEN_PROMPT,
        {
            "preprocessor_config.json": {
                **_QWEN,
                **_QWEN_PIXELS,
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2VLProcessor",
            }
        },
        tokens=_QWEN_TOKENS,
    ),
    "Qwen2.5-VL": HubFolder(
        "qwen2.5-vl",
        "<|image_pad|>",
        _QWEN_PROMPT,
        {
            "preprocessor_config.json": {
                **_QWEN,
                **_QWEN_PIXELS,
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            }
        },
        tokens=_QWEN_TOKENS,
        template="tokenizer_config.json",
    ),
    "Qwen3-VL": HubFolder(
        "qwen3-vl",
        "<|image_pad|>",
        _QWEN_PROMPT,
        {
            "preprocessor_config.json": {
                **_QWEN,
                "size": {"longest_edge": 1024, "shortest_edge": 256},
                "image_processor_type": "Qwen2VLImageProcessorFast",
                "processor_class": "Qwen3VLProcessor",
            },
            "video_preprocessor_config.json": {
                **_QWEN,
                "size": {"longest_edge": 4096, "shortest_edge": 1024},
                "video_processor_type": "Qwen3VLVideoProcessor",
                "processor_class": "Qwen3VLProcessor",
            },
        },
        tokens=_QWEN_TOKENS,
    ),
    "LLaVA-OneVision": HubFolder(
        "llava-onevision",
        "<image>",
        "<image>\n",
        {
            "processor_config.json": {
                "image_token": "<image>",
                "num_image_tokens": 4,
                "processor_class": "LlavaOnevisionProcessor",
                "video_token": "<video>",
                "vision_aspect_ratio": "anyres_max_9",
                "vision_feature_select_strategy": "full",
            },
            "preprocessor_config.json": {
                **_MEANS,
                "do_pad": True,
                "do_resize": True,
                "image_grid_pinpoints": [[32, 32]],
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "size": _SQUARE,
            },
            "video_preprocessor_config.json": {
                "size": _SQUARE,
                "video_processor_type": "LlavaOnevisionVideoProcessor",
                "processor_class": "LlavaOnevisionProcessor",
            },
        },
        tokens=("<video>",),
    ),
    "SmolVLM": HubFolder(
        "idefics3",
        "<image>",
        "<image>",
        {
            "processor_config.json": {"image_seq_len": 4, "processor_class": "Idefics3Processor"},
            "preprocessor_config.json": {
                **_SMOL,
                "image_processor_type": "Idefics3ImageProcessor",
                "processor_class": "Idefics3Processor",
            },
        },
        tokens=_SMOL_TOKENS,
    ),
    "SmolVLM2": HubFolder(
        "smolvlm",
        "<image>",
        "<image>",
        {
            "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
            "preprocessor_config.json": {
                **_SMOL,
                "image_processor_type": "SmolVLMImageProcessor",
                "processor_class": "SmolVLMProcessor",
                "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}},
            },
        },
        tokens=(*_SMOL_TOKENS, "<video>"),
    ),
    "Mistral-3": HubFolder(
        "mistral3",
        "[IMG]",
        "[IMG]",
        {
            "processor_config.json": {
                "image_break_token": "[IMG_BREAK]",
                "image_end_token": "[IMG_END]",
                "image_token": "[IMG]",
                "patch_size": 8,
                "processor_class": "PixtralProcessor",
                "spatial_merge_size": 2,
            },
            "preprocessor_config.json": {
                **_MEANS,
                "image_processor_type": "PixtralImageProcessorFast",
                "patch_size": 8,
                "processor_class": "PixtralProcessor",
                "size": {"longest_edge": 32},
            },
        },
        tokens=("[IMG_BREAK]", "[IMG_END]"),
    ),
    "InternVL3": HubFolder(
        "internvl-qwen2",
        "<IMG_CONTEXT>",
        "<IMG_CONTEXT>\n",
        {
            "processor_config.json": {"image_seq_length": 4, "processor_class": "InternVLProcessor"},
            "preprocessor_config.json": {
                **_MEANS,
                "crop_to_patches": False,
                "image_processor_type": "GotOcr2ImageProcessorFast",
                "max_patches": 12,
                "min_patches": 1,
                "processor_class": "InternVLProcessor",
                "size": _SQUARE,
            },
            "video_preprocessor_config.json": {
                "size": _SQUARE,
                "video_processor_type": "InternVLVideoProcessor",
                "processor_class": "InternVLProcessor",
            },
        },
        tokens=("<img>", "</img>", "<video>"),
        names={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        template="chat_template.jinja",
    ),
    "Gemma-3": HubFolder(
        "gemma3",
        "<image_soft_token>",
        "<start_of_image>",
        {
            "processor_config.json": {"image_seq_length": 4, "processor_class": "Gemma3Processor"},
            "preprocessor_config.json": {
                "do_convert_rgb": None,
                "do_normalize": True,
                "do_pan_and_scan": None,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.5, 0.5, 0.5],
                "image_processor_type": "Gemma3ImageProcessor",
                "image_std": [0.5, 0.5, 0.5],
                "pan_and_scan_max_num_crops": None,
                "pan_and_scan_min_crop_size": None,
                "pan_and_scan_min_ratio_to_activate": None,
                "processor_class": "Gemma3Processor",
                "resample": 2,
                "rescale_factor": 0.00392156862745098,
                "size": _SQUARE,
            },
        },
        tokens=("<start_of_image>", "<end_of_image>"),
        names={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        template="chat_template.json",
    ),
    "Saved-by-5": HubFolder(  # what transformers 5 writes itself: all parts in one file
        "qwen2.5-vl",
        "<|image_pad|>",
        _QWEN_PROMPT,
        {
            "processor_config.json": {
                "image_processor": {**_QWEN, **_QWEN_PIXELS, "image_processor_type": "Qwen2VLImageProcessor"},
                "processor_class": "Qwen2_5_VLProcessor",
                "video_processor": {**_QWEN, "video_processor_type": "Qwen2VLVideoProcessor"},
            }
        },
        tokens=_QWEN_TOKENS,
        template="chat_template.jinja",
    ),
}


def save_hub_folder(folder: Path, name: str, *, build: Callable[[str], PreTrainedModel] = tiny_model) -> Path:
    """The tiny checkpoint `name` of HUB_FOLDERS in `folder`; `build` makes the model of a family."""
    hub = HUB_FOLDERS[name]
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in hub.tokens])
    model = build(hub.model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vocabulary = folder / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace('"<image>"', json.dumps(hub.placeholder)))
    template = TEMPLATE.replace("<image>", hub.prompt)
    settings = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({"extra_special_tokens": dict(hub.names)} if hub.names else {}),
    }
    documents: dict[str, dict[str, Any]] = {"tokenizer_config.json": settings}
    documents |= {file: dict(content) for file, content in hub.files.items()}
    if hub.template.endswith(".json"):
        documents[hub.template] = {**documents.get(hub.template, {}), "chat_template": template}
    else:
        (folder / hub.template).write_text(template, encoding="utf-8")
    for file, content in documents.items():
        (folder / file).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder
