"""The language model of a checkpoint as a GGUF file: metadata with an entry a layer, and tensors by llama.cpp's names.

llama.cpp's `llama` architecture gives all layers one FFN width and one number of heads. Its `deci` architecture
computes the same layers and reads these numbers as arrays, one entry a layer, so a pruned model is written as `deci`,
and one whose layers are alike as `llama`. Both read biases of all projections where the file has them. Families that
compute more have architectures of their own, whose layers are filled up to one size (`layouts`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruning.anatomy.tensor_roles import EMBEDDINGS, OUTPUT_HEAD, outer_tensor
from pruning.checkpoints.anatomy_reader import head_dim_of
from pruning.checkpoints.output_head import needed_tensors
from pruning.cutting.gguf.decoder_layers import LayerSizes, exported_layers, layer_tensors, zero_notes
from pruning.cutting.gguf.layouts import LAYOUTS
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.gguf.rotary import Rotary, rotary_of
from pruning.cutting.gguf.tensors import GgufTensor, Stored, check_shape, copied
from pruning.cutting.gguf.writer import Value
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_OTHER_LAYERS = {
    "gemma": "scaled embeddings and norms of 1 + weight",
    "gemma2": "norms after each sub-layer and soft-capped logits",
    "gemma3_text": "norms of queries and keys, norms after each sub-layer and a sliding window",
    "phi": "partial rotary embeddings, LayerNorm, and attention beside the FFN",
    "phi3": "fused projections",
    "qwen3_vl_text": "interleaved M-RoPE, and features of the vision tower in several layers",
}


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What is to be written of a language model, besides its vocabulary."""

    architecture: str
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    vocab_size: int
    sizes: LayerSizes
    notes: tuple[str, ...] = ()


def language_model(
    config: "PreTrainedConfig", stored: Stored, wanted: TensorType, *, context_length: int | None = None
) -> LanguageModel:
    """The decoder in `stored`, checked: everything llama.cpp would compute differently is refused here.

    Raises:
        UnsupportedModelError: it has something that the `deci` architecture has not; the message names it.
        CheckpointError: its tensors are not those of its config.
    """
    text = config.get_text_config(decoder=True)
    stored = needed_tensors(config, stored)
    context = _check_representable(config, text, context_length)
    layout, head_dim = LAYOUTS[text.model_type], head_dim_of(text)
    rotary = rotary_of(text, head_dim, layout)
    prefix, layers = exported_layers(config, stored, head_dim, layout)
    sizes = LayerSizes.of(layers)
    tensors = [*_outer_tensors(config, text, stored, prefix, wanted)]
    if rotary.freq_factors is not None:
        factors = rotary.freq_factors
        tensors.append(GgufTensor("rope_freqs.weight", factors.shape, TensorType.F32, values=factors))
    for number, layer in enumerate(layers):
        tensors += layer_tensors(number, layer, stored, int(text.hidden_size), head_dim, layout, wanted)
    architecture = layout.name or ("llama" if sizes.uniform else "deci")
    metadata = _metadata(architecture, text, sizes, head_dim, rotary, context)
    vocab_size = tensors[0].shape[0]
    notes = (*zero_notes(layers, layout), *([layout.note] if layout.note else []))
    return LanguageModel(architecture, metadata, tuple(tensors), vocab_size, sizes, notes)


def _check_representable(config: "PreTrainedConfig", text: Any, wanted: int | None) -> int:
    """The context length of the export; raises UnsupportedModelError if something has no place in the format."""
    if text.model_type not in LAYOUTS:
        reason = _OTHER_LAYERS.get(text.model_type)
        raise UnsupportedModelError(
            "the language model's layers must be those of an architecture of llama.cpp that can be written",
            values=f"model_type={text.model_type!r}" + (f", which has {reason}" if reason else ""),
            remedy=f"Families that can be exported: {', '.join(LAYOUTS)}",
        )
    if getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None):
        raise UnsupportedModelError(
            "the checkpoint's weights must be plain numbers", values="the config has a quantization_config"
        )
    if text.hidden_act != "silu":
        raise UnsupportedModelError(
            "the FFN's activation must be silu, which llama.cpp's architectures for it have",
            values=f"hidden_act={text.hidden_act!r}",
        )
    longest = int(text.max_position_embeddings)
    context = longest if wanted is None else wanted
    if not 1 <= context <= longest:
        raise UnsupportedModelError(
            "the context must be within what the model was made for", values=f"{context} of {longest} tokens"
        )
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ("sliding_attention",))
    if window is not None and slides and window < context:
        raise UnsupportedModelError(
            "every token must see all before it: llama.cpp's architectures for it have no sliding window",
            values=f"sliding_window={window}, a context of {context} tokens",
            remedy=f"Within {window} tokens the window makes no difference: export with --context {window}",
        )
    return context


def _outer_tensors(
    config: "PreTrainedConfig", text: Any, stored: Stored, prefix: str, wanted: TensorType
) -> list[GgufTensor]:
    """Embeddings, the last norm, and the output head unless it is the embeddings (llama.cpp shares them then)."""
    named = {kind: name for name in stored if (kind := outer_tensor(name))}
    tied = bool(getattr(config, "tie_word_embeddings", False))
    head = named.get(OUTPUT_HEAD)
    embeddings = named.get(EMBEDDINGS, head if tied else None)  # files may hold either of what is tied
    norm = f"{prefix}norm.weight"
    if embeddings is None or norm not in stored:
        raise CheckpointError(
            "the checkpoint must hold its embeddings and last norm",
            values=f"no {norm if embeddings else f'{prefix}{EMBEDDINGS}'}",
        )
    if head is None and not tied:
        raise CheckpointError("the checkpoint must hold its output head", values=f"no {OUTPUT_HEAD}")
    shape = (stored[embeddings].shape[0], int(text.hidden_size))
    check_shape(stored, embeddings, shape)
    check_shape(stored, norm, shape[1:])
    found = [
        copied("token_embd.weight", embeddings, stored, wanted),
        copied("output_norm.weight", norm, stored, wanted),
    ]
    if head is not None and head != embeddings:
        check_shape(stored, head, shape)
        found.append(copied("output.weight", head, stored, wanted))
    return found


def _metadata(
    architecture: str, text: Any, sizes: LayerSizes, head_dim: int, rotary: Rotary, context: int
) -> dict[str, Value]:
    """The architecture's keys (GGUF specification, "LLM"; src/llama-arch.cpp)."""

    def per_layer(values: tuple[int, ...]) -> Value:
        return values[0] if sizes.uniform else list(values)

    found: dict[str, Value] = {
        "block_count": len(sizes.heads),
        "context_length": context,
        "embedding_length": int(text.hidden_size),
        "feed_forward_length": per_layer(sizes.ffn_widths),
        "attention.head_count": per_layer(sizes.heads),
        "attention.head_count_kv": per_layer(sizes.kv_heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "rope.dimension_count": head_dim,
        "rope.freq_base": rotary.freq_base,
    }
    if rotary.sections is not None:
        found["rope.dimension_sections"] = [*rotary.sections, 0]
    if rotary.freq_factors is not None:
        found["rope.scaling.type"] = "none"  # all of it is in rope_freqs.weight
    if rotary.attention_factor != 1.0:
        found["rope.scaling.attn_factor"] = rotary.attention_factor
    return {f"{architecture}.{key}": value for key, value in found.items()}
