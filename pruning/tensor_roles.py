"""Which units a tensor of the checkpoint holds: told by its name, the family's row, and the layer's sizes."""

import re
from collections.abc import Iterable, Sequence

from pruning.anatomy import DecoderLayer, Part, TensorSpec, Unit
from pruning.families import FAMILIES, Family, Role

TensorHeader = tuple[str, tuple[int, ...], str]
"""(name, shape, safetensors dtype name)."""

# A decoder tensor, with any of the prefixes that the library and the hub give it. Nothing else may stand there: vision
# and audio towers, resamplers and draft heads number their layers too, and some have projections of the same names.
DECODER_TENSOR = re.compile(r"^(?:(?:model|language_model|text_model)\.)*layers\.(\d+)\.(.+)$")


def decoder_tensor(name: str) -> tuple[int, str] | None:
    """The layer of a decoder tensor and its name inside the layer; None for any other tensor."""
    match = DECODER_TENSOR.match(name)
    return (int(match[1]), match[2]) if match else None


def tensor_specs(
    headers: Iterable[TensorHeader], layers: Sequence[DecoderLayer], text_model_type: str
) -> tuple[TensorSpec, ...]:
    """The tensors `headers`, in their order, with what each holds of `layers`."""
    family = FAMILIES.get(text_model_type)
    return tuple(_spec(header, layers, family) for header in headers)


def unit_axis(inside: str, layer: DecoderLayer, family: Family) -> tuple[int, tuple[Part, ...]] | None:
    """The axis of the decoder tensor `inside` (its name inside the layer) that counts units, and its parts, if any."""
    module, _, kind = inside.rpartition(".")
    if kind in ("weight", "bias") and module in family.rows:
        return 0, tuple(_part(role, layer) for role in family.rows[module])
    if inside == f"{family.ffn_out}.weight":
        return 1, (_part(Role.CHANNEL, layer),)
    if inside == f"{family.attention_out}.weight":
        return 1, (_part(Role.QUERY, layer),)
    return None


def _part(role: Role, layer: DecoderLayer) -> Part:
    match role:
        case Role.CHANNEL:
            return Part(Unit.FFN_CHANNEL, 1, layer.ffn_width)
        case Role.QUERY:
            return Part(Unit.KV_GROUP, layer.heads_per_group * layer.head_dim, layer.num_kv_groups)
        case Role.KEY | Role.VALUE:
            return Part(Unit.KV_GROUP, layer.head_dim, layer.num_kv_groups)


def _spec(header: TensorHeader, layers: Sequence[DecoderLayer], family: Family | None) -> TensorSpec:
    place = decoder_tensor(header[0])
    if place is None or family is None or place[0] >= len(layers):
        return TensorSpec(*header)
    found = unit_axis(place[1], layers[place[0]], family)
    return TensorSpec(*header) if found is None else TensorSpec(*header, place[0], *found)
