"""The language model of a checkpoint as a GGUF file: metadata with an entry a layer, and tensors by llama.cpp's names.

llama.cpp's `llama` architecture gives all layers one FFN width and one number of heads. Its `deci` architecture
computes the same layers and reads these numbers as arrays, one entry a layer, so a pruned model is written as `deci`,
and one whose layers are alike as `llama`. Both read biases of all projections where the file has them. Families that
compute more have architectures of their own, whose layers are filled up to one size (`layouts`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruning.anatomy.gguf_types import StoredType, TensorType
from pruning.anatomy.tensor_roles import EMBEDDINGS, OUTPUT_HEAD, outer_tensor
from pruning.checkpoints.anatomy_reader import head_dim_of
from pruning.checkpoints.output_head import needed_tensors
from pruning.checkpoints.packed_tensors import StoredPacked, with_packed
from pruning.cutting.gguf.decoder_layers import LayerSizes, exported_layers, layer_tensors, zero_notes
from pruning.cutting.gguf.gemma3 import check_gemma3, gemma3_metadata, query_scale
from pruning.cutting.gguf.layouts import LAYOUTS, Layout
from pruning.cutting.gguf.packed_blocks import check_quantisation, scale_note
from pruning.cutting.gguf.rotary import Rotary, rotary_of
from pruning.cutting.gguf.tensors import GgufTensor, Stored, Weights, check_shape, copied
from pruning.cutting.gguf.writer import Value
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_OTHER_LAYERS = {
    "gemma": "scaled embeddings and norms of 1 + weight",
    "gemma2": "norms after each sub-layer and soft-capped logits",
    "phi": "partial rotary embeddings, LayerNorm, and attention beside the FFN",
    "phi3": "fused projections",
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
    context = _check_representable(config, text, context_length)
    weights = with_packed(needed_tensors(config, stored))
    layout, head_dim = LAYOUTS[text.model_type], head_dim_of(text)
    rotary = None if layout.windows else rotary_of(text, head_dim, layout)
    num_deep = _num_deep_layers(config, text)
    prefix, layers = exported_layers(config, weights, head_dim, layout, num_fixed=num_deep)
    sizes = LayerSizes.of(layers)
    tensors = [*_outer_tensors(config, text, weights, prefix, layout, wanted)]
    if rotary is not None and rotary.freq_factors is not None:
        factors = rotary.freq_factors
        tensors.append(GgufTensor("rope_freqs.weight", factors.shape, StoredType.F32, values=factors))
    scale = 1.0
    if layout.windows:
        scale = query_scale(text, head_dim=head_dim, num_layers=len(layers), num_heads=sizes.heads[0])
    hidden = int(text.hidden_size)
    for number, layer in enumerate(layers):
        tensors += layer_tensors(number, layer, weights, hidden, head_dim, layout, wanted, query_scale=scale)
    architecture = layout.name or ("llama" if sizes.uniform else "deci")
    keys = _sizes_metadata(text, sizes, head_dim, context)
    keys |= gemma3_metadata(text, [x.index for x in layers]) if rotary is None else _rotary_metadata(rotary)
    if num_deep:
        keys["n_deepstack_layers"] = num_deep
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()}
    vocab_size = tensors[0].shape[0]
    differences: tuple[str | None, ...] = (layout.note, None if rotary is None else rotary.note)
    differences += (scale_note(x.source for x in tensors if isinstance(x.source, StoredPacked)),)
    notes = (*zero_notes(layers, layout), *(note for note in differences if note))
    return LanguageModel(architecture, metadata, tuple(tensors), vocab_size, sizes, notes)


def _num_deep_layers(config: "PreTrainedConfig", text: Any) -> int:
    """How many of the first decoder layers add features of the vision tower (DeepStack), and must therefore stay."""
    deep = getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    return min(len(deep), int(text.num_hidden_layers))


def _check_representable(config: "PreTrainedConfig", text: Any, wanted: int | None) -> int:
    """The context length of the export; raises UnsupportedModelError if something has no place in the format."""
    if text.model_type not in LAYOUTS:
        reason = _OTHER_LAYERS.get(text.model_type)
        raise UnsupportedModelError(
            "the language model's layers must be those of an architecture of llama.cpp that can be written",
            values=f"model_type={text.model_type!r}" + (f", which has {reason}" if reason else ""),
            remedy=f"Families that can be exported: {', '.join(LAYOUTS)}",
        )
    check_quantisation(config)
    layout = LAYOUTS[text.model_type]
    activation = getattr(text, "hidden_activation", None) or text.hidden_act
    if activation != layout.activation:
        raise UnsupportedModelError(
            f"the FFN's activation must be {layout.activation}, which llama.cpp's architectures for it have",
            values=f"hidden_act={activation!r}",
        )
    longest = int(text.max_position_embeddings)
    context = longest if wanted is None else wanted
    if not 1 <= context <= longest:
        raise UnsupportedModelError(
            "the context must be within what the model was made for", values=f"{context} of {longest} tokens"
        )
    if layout.windows:
        check_gemma3(text)
        return context
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
    config: "PreTrainedConfig", text: Any, stored: Weights, prefix: str, layout: Layout, wanted: TensorType
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
        copied("output_norm.weight", norm, stored, wanted, shift=layout.norm_shift),
    ]
    if head is not None and head != embeddings:
        check_shape(stored, head, shape)
        found.append(copied("output.weight", head, stored, wanted))
    return found


def _sizes_metadata(text: Any, sizes: LayerSizes, head_dim: int, context: int) -> dict[str, Value]:
    """The architecture's keys, without its name in front (GGUF specification, "LLM"; src/llama-arch.cpp)."""

    def per_layer(values: tuple[int, ...]) -> Value:
        return values[0] if sizes.uniform else list(values)

    return {
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
    }


def _rotary_metadata(rotary: Rotary) -> dict[str, Value]:
    found: dict[str, Value] = {"rope.freq_base": rotary.freq_base}
    if rotary.sections is not None:
        found["rope.dimension_sections"] = [*rotary.sections, 0]
    if rotary.freq_factors is not None:
        found["rope.scaling.type"] = "none"  # all of it is in rope_freqs.weight
    if rotary.attention_factor != 1.0:
        found["rope.scaling.attn_factor"] = rotary.attention_factor
    return found
