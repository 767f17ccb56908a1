"""The language model of a checkpoint as a GGUF file: metadata with an entry a layer, and tensors by llama.cpp's names.

llama.cpp's `llama` architecture gives all layers one FFN width and one number of heads. Its `deci` architecture
computes the same layers and reads these numbers as arrays, one entry a layer, so a pruned model is written as `deci`,
and one whose layers are alike as `llama`. Both read biases of all projections where the file has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.anatomy.dtypes import FLOAT_DTYPES
from pruning.anatomy.layer_config import recorded_architecture
from pruning.anatomy.tensor_roles import EMBEDDINGS, OUTPUT_HEAD, decoder_tensor, outer_tensor
from pruning.checkpoints.anatomy_reader import head_dim_of, layer_shapes
from pruning.checkpoints.output_head import needed_tensors
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.gguf.rotary import Rotary, rotary_of
from pruning.cutting.gguf.tensor_types import stored_type
from pruning.cutting.gguf.tensors import GgufTensor, Stored
from pruning.cutting.gguf.writer import Value
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = ("llama", "mistral", "qwen2")
"""`model_type` of text configs whose layers llama.cpp's `deci` computes exactly."""

_OTHER_LAYERS = {
    "gemma": "scaled embeddings and norms of 1 + weight",
    "gemma2": "norms after each sub-layer and soft-capped logits",
    "gemma3_text": "norms of queries and keys, norms after each sub-layer and a sliding window",
    "phi": "partial rotary embeddings, LayerNorm, and attention beside the FFN",
    "phi3": "fused projections",
    "qwen2_vl_text": "M-RoPE",
    "qwen2_5_vl_text": "M-RoPE",
    "qwen3": "norms of queries and keys",
    "qwen3_vl_text": "M-RoPE, and norms of queries and keys",
}

_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""A layer's modules -> llama.cpp's names (src/llama-arch.cpp)."""

_ROTARY = ("self_attn.q_proj", "self_attn.k_proj")


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """[L] of each layer: FFN width, query heads, and key/value heads."""

    ffn_widths: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]

    @property
    def uniform(self) -> bool:
        """Whether all layers are alike."""
        return all(len(set(sizes)) == 1 for sizes in (self.ffn_widths, self.heads, self.kv_heads))


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What is to be written of a language model, besides its vocabulary."""

    architecture: str
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    vocab_size: int
    sizes: LayerSizes


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
    head_dim = head_dim_of(text)
    rotary = rotary_of(text, head_dim)
    prefix, layers = _decoder_names(stored, int(text.num_hidden_layers))
    sizes = _layer_sizes(config, text, stored, layers, head_dim)
    tensors = [*_outer_tensors(config, text, stored, prefix, wanted)]
    if rotary.freq_factors is not None:
        factors = rotary.freq_factors
        tensors.append(GgufTensor("rope_freqs.weight", factors.shape, TensorType.F32, values=factors))
    for layer, names in enumerate(layers):
        tensors += _layer_tensors(layer, names, stored, head_dim, wanted)
    architecture = "llama" if sizes.uniform else "deci"
    metadata = _metadata(architecture, text, sizes, head_dim, rotary, context)
    vocab_size = tensors[0].shape[0]
    return LanguageModel(architecture, metadata, tuple(tensors), vocab_size, sizes)


def _check_representable(config: "PreTrainedConfig", text: Any, wanted: int | None) -> int:
    """The context length of the export; raises UnsupportedModelError if something has no place in the format."""
    if text.model_type not in FAMILIES:
        reason = _OTHER_LAYERS.get(text.model_type)
        raise UnsupportedModelError(
            "the language model's layers must be those of llama.cpp's deci architecture",
            values=f"model_type={text.model_type!r}" + (f", which has {reason}" if reason else ""),
            remedy=f"Families that can be exported: {', '.join(FAMILIES)}",
        )
    if getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None):
        raise UnsupportedModelError(
            "the checkpoint's weights must be plain numbers", values="the config has a quantization_config"
        )
    if text.hidden_act != "silu":
        raise UnsupportedModelError(
            "the FFN's activation must be silu, which llama.cpp's deci architecture has",
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
            "every token must see all before it: llama.cpp's deci architecture has no sliding window",
            values=f"sliding_window={window}, a context of {context} tokens",
            remedy=f"Within {window} tokens the window makes no difference: export with --context {window}",
        )
    return context


def _decoder_names(stored: Stored, num_layers: int) -> tuple[str, list[dict[str, str]]]:
    """The prefix of the decoder's tensors, and for each layer: name inside the layer -> the checkpoint's name."""
    layers: list[dict[str, str]] = [{} for _ in range(num_layers)]
    prefixes = set()
    for name in stored:
        place = decoder_tensor(name)
        if place is None:
            continue
        layer, inside = place
        prefixes.add(name.removesuffix(f"layers.{layer}.{inside}"))
        if layer >= num_layers:
            raise CheckpointError(
                "the checkpoint must hold the layers of its config", values=f"{name}, config says {num_layers} layers"
            )
        layers[layer][inside] = name
    if len(prefixes) != 1:
        raise CheckpointError("the checkpoint must hold one language model", values=str(sorted(prefixes)))
    return prefixes.pop(), layers


def _layer_sizes(
    config: "PreTrainedConfig", text: Any, stored: Stored, layers: list[dict[str, str]], head_dim: int
) -> LayerSizes:
    """[L] sizes by the shapes of the tensors; raises CheckpointError if they are not what the config records."""
    shapes = layer_shapes(config)
    recorded = recorded_architecture(config) or Architecture()
    widths = recorded.units(Sublayer.FFN, [x.ffn_width for x in shapes])
    kv_groups = recorded.units(Sublayer.ATTENTION, [x.num_kv_groups for x in shapes])
    hidden, found = int(text.hidden_size), []
    for layer, (names, dense) in enumerate(zip(layers, shapes, strict=True)):
        for module in _LAYER_TENSORS:
            if f"{module}.weight" not in names:
                raise CheckpointError("every layer must have all of its tensors", values=f"layer {layer}: no {module}")
        width, groups = widths[layer], kv_groups[layer]
        queries = groups * dense.heads_per_group
        if min(width, queries, groups) < 1:
            raise UnsupportedModelError(
                "every layer must keep a channel and a head, or llama.cpp computes something else",
                values=f"layer {layer}: {width} channels, {queries} heads, {groups} key/value heads",
            )
        expected = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries * head_dim, hidden),
            "self_attn.k_proj": (groups * head_dim, hidden),
            "self_attn.v_proj": (groups * head_dim, hidden),
            "self_attn.o_proj": (hidden, queries * head_dim),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (width, hidden),
            "mlp.up_proj": (width, hidden),
            "mlp.down_proj": (hidden, width),
        }
        for module, shape in expected.items():
            name = names[f"{module}.weight"]
            check_shape(stored, name, shape)
            if bias := names.get(f"{module}.bias"):
                check_shape(stored, bias, shape[:1])
        found.append((width, queries, groups))
    widths, queries_of, groups_of = zip(*found, strict=True)
    return LayerSizes(tuple(widths), tuple(queries_of), tuple(groups_of))


def check_shape(stored: Stored, name: str, shape: tuple[int, ...]) -> None:
    """Raises CheckpointError if the checkpoint's tensor has another shape, or a dtype that is no plain number."""
    found, dtype = stored[name].shape, stored[name].dtype
    if found != shape:
        raise CheckpointError(
            "a tensor must have the shape that the config says",
            values=f"{name} {list(found)}, should be {list(shape)}",
        )
    if dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            "weights must be of a plain dtype", values=f"{name} {dtype}, known {', '.join(FLOAT_DTYPES)}"
        )


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
        _tensor("token_embd.weight", embeddings, stored, wanted),
        _tensor("output_norm.weight", norm, stored, wanted),
    ]
    if head is not None and head != embeddings:
        check_shape(stored, head, shape)
        found.append(_tensor("output.weight", head, stored, wanted))
    return found


def _layer_tensors(
    layer: int, names: Mapping[str, str], stored: Stored, head_dim: int, wanted: TensorType
) -> list[GgufTensor]:
    """One layer's tensors in a fixed order; raises UnsupportedModelError for one that llama.cpp would not read."""
    known = [f"{module}.{kind}" for module in _LAYER_TENSORS for kind in ("weight", "bias")]
    strange = sorted(set(names) - set(known))
    strange += [name for name in names if name.endswith("layernorm.bias")]
    if strange:
        raise UnsupportedModelError(
            "every tensor of a layer must have its place in llama.cpp's deci architecture",
            values=f"layer {layer} has {strange[0]}",
        )
    found = []
    for inside in known:
        if inside in names:
            module, _, kind = inside.rpartition(".")
            rotary_dim = head_dim if module in _ROTARY else 0
            name = f"blk.{layer}.{_LAYER_TENSORS[module]}.{kind}"
            found.append(_tensor(name, names[inside], stored, wanted, rotary_dim=rotary_dim))
    return found


def _tensor(name: str, source: str, stored: Stored, wanted: TensorType, *, rotary_dim: int = 0) -> GgufTensor:
    shape = stored[source].shape
    return GgufTensor(name, shape, stored_type(shape, wanted), stored[source], rotary_dim)


def _metadata(
    architecture: str, text: Any, sizes: LayerSizes, head_dim: int, rotary: Rotary, context: int
) -> dict[str, Value]:
    """The architecture's keys (GGUF specification, "LLM"; src/llama-arch.cpp)."""

    def per_layer(values: tuple[int, ...]) -> Value:
        return values[0] if sizes.uniform else list(values)

    found: dict[str, Value] = {
        "block_count": int(text.num_hidden_layers),
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
    if rotary.freq_factors is not None:
        found["rope.scaling.type"] = "none"  # all of it is in rope_freqs.weight
    if rotary.attention_factor != 1.0:
        found["rope.scaling.attn_factor"] = rotary.attention_factor
    return {f"{architecture}.{key}": value for key, value in found.items()}
