"""Which sub-layer a tensor belongs to, and which of its units it holds: told by its name, the family's row, and the
layer's sizes."""

import re
from collections.abc import Iterable, Sequence

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer, Part, TensorSpec
from pruning.anatomy.families import FAMILIES, Family, Role

TensorHeader = tuple[str, tuple[int, ...], str]
"""(name, shape, safetensors dtype name)."""

# A decoder tensor, with any of the prefixes that the library and the hub give it. Nothing else may stand there: vision
# and audio towers, resamplers and draft heads number their layers too, and some have projections of the same names.
_PREFIXES = r"^(?:(?:model|language_model|text_model)\.)*"
DECODER_TENSOR = re.compile(_PREFIXES + r"layers\.(\d+)\.(.+)$")
_LAST_NORMS = "|".join(sorted({family.final_norm for family in FAMILIES.values()}))
_OUTER_TENSOR = re.compile(_PREFIXES + rf"((?:embed_tokens|lm_head|{_LAST_NORMS})\.(?:weight|bias))$")
EMBEDDINGS, OUTPUT_HEAD = "embed_tokens.weight", "lm_head.weight"

# Old exports store them (Llama 2's F32 `rotary_emb.inv_freq` in every layer); transformers computes them.
_COMPUTED_BUFFER = re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|position_ids)$")


def decoder_tensor(name: str) -> tuple[int, str] | None:
    """The layer of a decoder tensor and its name inside the layer; None for any other tensor."""
    match = DECODER_TENSOR.match(name)
    return (int(match[1]), match[2]) if match else None


def outer_tensor(name: str) -> str | None:
    """The name, without prefixes, of the language model's embeddings, last norm or head; None for any other tensor."""
    match = _OUTER_TENSOR.match(name)
    return match[1] if match else None


def is_computed(name: str) -> bool:
    """Whether a stored tensor is a buffer that models compute when they are built: neither a parameter nor needed."""
    return _COMPUTED_BUFFER.search(name) is not None


def short_names(names: Iterable[str], *, tied: bool) -> dict[str, str]:
    """Each tensor's name without the prefixes that differ between files and modules.

    Decoder tensors keep their name inside the layer, others their last two name parts: parameters of the whole model
    (LLaVA-NeXT's `image_newline`) are the module `model`'s in memory and nobody's in files. Embeddings that are stored
    only as the head that they are `tied` to are called embeddings.
    """
    short = {name: _short_name(name) for name in names}
    if tied and EMBEDDINGS not in short.values():
        return {name: EMBEDDINGS if found == OUTPUT_HEAD else found for name, found in short.items()}
    return short


def _short_name(name: str) -> str:
    place = decoder_tensor(name)
    return f"layers.{place[0]}.{place[1]}" if place else ".".join(name.split(".")[-2:]).removeprefix("model.")


def tensor_specs(
    headers: Iterable[TensorHeader], layers: Sequence[DecoderLayer], text_model_type: str
) -> tuple[TensorSpec, ...]:
    """The tensors `headers`, in their order, with what each holds of `layers`."""
    family = FAMILIES.get(text_model_type)
    return tuple(_spec(header, layers, family) for header in headers)


def layer_tensor(header: TensorHeader, inside: str, layer: DecoderLayer, family: Family) -> TensorSpec:
    """The decoder tensor `header`, which is called `inside` in the dense `layer`."""
    sublayer = family.sublayer_of(inside)
    site = None if sublayer is None else Site(layer.index, sublayer)
    return TensorSpec(*header, site, *_unit_axis(inside, layer, family))


def _unit_axis(inside: str, layer: DecoderLayer, family: Family) -> tuple[int | None, tuple[Part, ...]]:
    """The axis of a decoder tensor that counts units, and what it is made of; (None, ()) if there is none."""
    module, _, kind = inside.rpartition(".")
    if kind in ("weight", "bias") and module in family.rows:
        return 0, tuple(_part(role, layer) for role in family.rows[module])
    if inside == f"{family.ffn_out}.weight":
        return 1, (_part(Role.CHANNEL, layer),)
    if inside == f"{family.attention_out}.weight":
        return 1, (_part(Role.QUERY, layer),)
    return None, ()


def _part(role: Role, layer: DecoderLayer) -> Part:
    match role:
        case Role.CHANNEL:
            return Part(Sublayer.FFN, 1, layer.ffn_width)
        case Role.QUERY:
            return Part(Sublayer.ATTENTION, layer.heads_per_group * layer.head_dim, layer.num_kv_groups)
        case Role.KEY | Role.VALUE:
            return Part(Sublayer.ATTENTION, layer.head_dim, layer.num_kv_groups)


def _spec(header: TensorHeader, layers: Sequence[DecoderLayer], family: Family | None) -> TensorSpec:
    place = decoder_tensor(header[0])
    if place is None or family is None or place[0] >= len(layers):
        return TensorSpec(*header)
    return layer_tensor(header, place[1], layers[place[0]], family)
