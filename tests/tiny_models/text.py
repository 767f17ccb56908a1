"""Configs of tiny language models: four layers, width 32, four heads in two KV groups unless they say otherwise."""

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.tiny_models.processor import vocab_size

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
SLIDING, FULL = "sliding_attention", "full_attention"


def sizes(**changed: Any) -> dict[str, Any]:
    """The sizes that all of them have."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size(),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changed,
    }


def llama(**changed: Any) -> PreTrainedConfig:
    return LlamaConfig(**sizes(**changed))


def mistral(**changed: Any) -> PreTrainedConfig:
    return MistralConfig(**sizes(**{"sliding_window": None, **changed}))


def qwen2(**changed: Any) -> PreTrainedConfig:
    return Qwen2Config(**sizes(**changed))


def qwen2_window(**changed: Any) -> PreTrainedConfig:
    """Two layers with a window after two without."""
    return qwen2(use_sliding_window=True, sliding_window=5, max_window_layers=2, **changed)


def qwen3(**changed: Any) -> PreTrainedConfig:
    """Norms of queries and keys; heads wider than D / H."""
    return Qwen3Config(**sizes(**{"head_dim": 16, **changed}))


def gemma(**changed: Any) -> PreTrainedConfig:
    return GemmaConfig(**sizes(**{"head_dim": 16, "num_key_value_heads": 2, **changed}))


def gemma2(**changed: Any) -> PreTrainedConfig:
    """Soft caps, and every other layer with a window."""
    return Gemma2Config(**sizes(**{"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16, **changed}))


def gemma3(**changed: Any) -> PreTrainedConfig:
    """Norms of queries and keys, two rotary bases, and three layers with a window for one without."""
    own = {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16, "sliding_window_pattern": 4}
    return Gemma3TextConfig(**sizes(**{**own, **changed}))


def phi3(**changed: Any) -> PreTrainedConfig:
    """Fused projections."""
    return Phi3Config(**sizes(**changed))


def phi(**changed: Any) -> PreTrainedConfig:
    """A parallel block, an FFN without a gate, biases everywhere; every head is a KV group of its own."""
    return PhiConfig(**sizes(**{"num_key_value_heads": None, "partial_rotary_factor": 0.5, **changed}))
