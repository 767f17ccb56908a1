"""The tiny models of the families, with heads of 32: vLLM's kernels for CPUs start there."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tests.tiny_models.builders import tiny_model

HEAD_DIM, NUM_HEADS = 32, 4
WIDTH = HEAD_DIM * NUM_HEADS

_WEIGHT_STD = 0.08
"""Wide enough apart that no two first choices are near ties, which two ways of computing may break differently."""


def wide_model(name: str) -> PreTrainedModel:
    """A random model of the family `name` (tests/tiny_models/builders.py)."""
    tiny = tiny_model(name)
    config = tiny.config
    _widen(config.get_text_config(decoder=True))
    _widen_neighbours(config)
    torch.manual_seed(0)
    model: PreTrainedModel = type(tiny)(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=_WEIGHT_STD)
    return model.eval()


def _widen(text: PreTrainedConfig) -> None:
    text.hidden_size, text.intermediate_size = WIDTH, 96
    text.head_dim = HEAD_DIM
    text.max_position_embeddings = 512
    if hasattr(text, "query_pre_attn_scalar"):
        text.query_pre_attn_scalar = HEAD_DIM
    rope: dict[str, Any] = text.rope_parameters
    if "mrope_section" in rope:
        rope["mrope_section"] = [4, 6, 6]


def _widen_neighbours(config: PreTrainedConfig) -> None:
    """What ends at the language model is as wide as it is."""
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return
    if config.model_type == "qwen2_vl":
        vision.hidden_size = WIDTH
    elif hasattr(vision, "out_hidden_size"):
        vision.out_hidden_size = WIDTH
    if hasattr(config, "projection_dim"):
        config.projection_dim = vision.projection_dim = WIDTH
    if hasattr(config, "perceiver_config"):
        config.perceiver_config.hidden_size = WIDTH
