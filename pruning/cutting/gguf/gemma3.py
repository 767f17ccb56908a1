"""Gemma 3's decoder in llama.cpp: layers that see a window, two rotary bases, its own scale of attention scores.

llama.cpp (src/models/gemma3.cpp) reads which layers have a window as an array, one entry a layer, so layers that a plan
has taken out leave no gap in the pattern. How it scales scores it concludes from the number of layers; what differs
from the config is multiplied into the weights of the queries' norm, which computes the same.
"""

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

from pruning.cutting.gguf.writer import Value
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SLIDING, _FULL = "sliding_attention", "full_attention"
_LAYERS_OF_27B = 62
"""llama.cpp takes a model of so many layers for the one of 27B, whose scale is that of hidden size / heads."""


def check_gemma3(text: "PreTrainedConfig") -> None:
    """Raises UnsupportedModelError for what a Gemma 3 may have and llama.cpp's graph has not."""
    unknown = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "use_bidirectional_attention": False}
    for name, expected in unknown.items():
        if (value := getattr(text, name, None)) not in (None, expected):
            raise UnsupportedModelError(
                "a Gemma 3 must have causal attention, and logits without a soft cap", values=f"{name}={value}"
            )
    others = sorted(set(text.layer_types) - {_SLIDING, _FULL})
    if others:
        raise UnsupportedModelError("attention must be full or within a window", values=", ".join(others))
    kinds = {kind: _rotary(text, kind)["rope_type"] for kind in set(text.layer_types)}
    if kinds.get(_FULL, "default") not in ("default", "linear") or kinds.get(_SLIDING, "default") != "default":
        raise UnsupportedModelError(
            "rotary embeddings may be scaled linearly in layers without a window, and not in others",
            values=", ".join(f"{kind}: rope_type={found!r}" for kind, found in kinds.items()),
        )


def gemma3_metadata(text: "PreTrainedConfig", layers: Sequence[int]) -> dict[str, Value]:
    """Keys of the rotary embeddings and windows of a file with those `layers` of the checkpoint."""
    full = _rotary(text, _FULL)
    found: dict[str, Value] = {"rope.freq_base": float(full["rope_theta"])}
    if full["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(full["factor"])}
    slides = [text.layer_types[layer] == _SLIDING for layer in layers]
    if any(slides):
        found |= {
            "attention.sliding_window": int(text.sliding_window),
            "attention.sliding_window_pattern": slides,
            "rope.freq_base_swa": float(_rotary(text, _SLIDING)["rope_theta"]),
        }
    return found


def query_scale(text: "PreTrainedConfig", *, head_dim: int, num_layers: int, num_heads: int) -> float:
    """What queries must be multiplied with besides llama.cpp's own scale, in a file of those sizes."""
    theirs = int(text.hidden_size) // num_heads if num_layers == _LAYERS_OF_27B else head_dim
    return sqrt(theirs / float(text.query_pre_attn_scalar))


def _rotary(text: "PreTrainedConfig", kind: str) -> dict[str, Any]:
    parameters = dict(text.rope_parameters[kind])
    return {**parameters, "rope_type": parameters.get("rope_type", "default")}
