"""What vLLM, with the plugin lop-vllm, was seen to serve of pruned checkpoints (docs/vllm.md).

One answer for all that give it: the plugin, `lop inspect` and model cards. The plugin has this package, but none of the
libraries that read weights.
"""

from collections.abc import Iterator
from typing import Any

from pruning.anatomy.families import FAMILIES, LLAMA_LIKE
from pruning.anatomy.packed_weights import GROUP

_SERVED = frozenset(
    (
        *("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma2", "gemma3_text"),
        *("llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "internvl", "mistral3", "gemma3"),
    )
)
"""`model_type` of configs; those that see, with pictures."""

_SERVED_WITHOUT_PICTURES = frozenset(("qwen3_vl", "idefics3", "smolvlm"))
"""Pictures of the first are refused by lop-vllm, those of the others by vLLM itself."""

SERVED_WEIGHTS = f"plain weights, or 4 bits in groups of {GROUP} in a language model with Llama's modules"


def family_limits(model_type: str) -> str:
    """What vLLM does not do, or nobody tried, of a family, by the config's `model_type`: a phrase that goes on after
    "vLLM"; empty where all was tried."""
    if model_type in _SERVED:
        return ""
    return ", text alone" if model_type in _SERVED_WITHOUT_PICTURES else ", not tried with this family"


def untried_weights(config: Any) -> str | None:
    """What of the weights in few bits that a pruned model's `config` records was not tried; None: all was, or all are
    plain numbers."""
    text = config.get_text_config(decoder=True)
    said = [x for section in (config, text) if (x := getattr(section, "quantization_config", None))]
    if not said:
        return None
    if text is not config or FAMILIES.get(text.model_type) is not LLAMA_LIKE:
        return f"a quantization_config, model_type={config.model_type!r}"
    return next((kind for document in said for kind in _untried_schemes(document)), None)


def _untried_schemes(said: Any) -> Iterator[str]:
    """What a `quantization_config` says that is not 4 bits as `lop apply` writes them."""
    if not isinstance(said, dict):
        yield f"a quantization_config of {type(said).__name__}"
        return
    written = said.get("quant_method"), said.get("format")
    if written != ("compressed-tensors", "pack-quantized"):
        yield "a quantization_config of " + " ".join(str(x) for x in written if x)
    for group in (said.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        bits, size = weights.get("num_bits"), weights.get("group_size")
        if (bits, size) != (4, GROUP) or not weights.get("symmetric") or group.get("input_activations"):
            yield f"weights of {bits} bits in groups of {size}"
