"""The decoder layers of a GGUF file: which of the checkpoint's are in it, with which sizes and tensors.

A layer of which a plan left nothing is not written: those behind it move up. Attention that is skipped is written as
no heads, which llama.cpp's `deci` architecture reads and passes by, with two exceptions (src/models/deci.cpp and
src/llama-model.cpp). It takes the head size of all layers from the first one, if that has heads; and it loses what the
attention of a layer without an FFN adds. There a stand-in of zeros is written, one head or `STAND_IN_CHANNELS`
channels: it adds exactly nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.anatomy.families import family_of
from pruning.anatomy.layer_config import recorded_architecture
from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.gguf.tensor_types import Q8_BLOCK
from pruning.cutting.gguf.tensors import GgufTensor, Stored, check_shape, copied, zeros
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

STAND_IN_CHANNELS = Q8_BLOCK
"""Of an FFN of zeros: the fewest that every tensor type can store."""

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
class ExportedLayer:
    """A layer of the checkpoint that is in the file.

    Attributes:
        index: its number in the checkpoint.
        names: name inside the layer -> the checkpoint's name.
        width: FFN channels, heads: query heads, groups: key/value heads, stand-ins included.
        stand_in: the half of which there are but zeros in the file.
    """

    index: int
    names: Mapping[str, str]
    width: int
    heads: int
    groups: int
    stand_in: Sublayer | None = None

    def shapes(self, hidden: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Of the weights of the modules that the file has of it."""
        queries, keys = self.heads * head_dim, self.groups * head_dim
        attention: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
        }
        ffn: dict[str, tuple[int, ...]] = {
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (self.width, hidden),
            "mlp.up_proj": (self.width, hidden),
            "mlp.down_proj": (hidden, self.width),
        }
        return (attention if self.heads else {}) | ffn


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """[L] of each layer of the file: FFN width, query heads, and key/value heads."""

    ffn_widths: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]

    @classmethod
    def of(cls, layers: Sequence[ExportedLayer]) -> "LayerSizes":
        return cls(tuple(x.width for x in layers), tuple(x.heads for x in layers), tuple(x.groups for x in layers))

    @property
    def uniform(self) -> bool:
        """Whether all layers are alike."""
        return all(len(set(sizes)) == 1 for sizes in (self.ffn_widths, self.heads, self.kv_heads))


def exported_layers(config: "PreTrainedConfig", stored: Stored, head_dim: int) -> tuple[str, list[ExportedLayer]]:
    """The prefix of the decoder's tensors, and the layers of the file, in order.

    Raises:
        CheckpointError: the tensors are not those that the config records.
        UnsupportedModelError: no layer has attention, or a layer has a tensor that llama.cpp would not read.
    """
    text = config.get_text_config(decoder=True)
    dense = layer_shapes(config)
    recorded = recorded_architecture(config) or Architecture()
    widths = recorded.units(Sublayer.FFN, [x.ffn_width for x in dense])
    kv_groups = recorded.units(Sublayer.ATTENTION, [x.num_kv_groups for x in dense])
    if not any(kv_groups):
        raise UnsupportedModelError(
            "one layer at least must have attention, or llama.cpp computes something else",
            values=f"all {len(dense)} layers skip it",
        )
    prefix, names = _decoder_names(stored, len(dense))
    found: list[ExportedLayer] = []
    for layer, width, groups in zip(dense, widths, kv_groups, strict=True):
        own = names[layer.index]
        _check_modules(layer.index, own, text, {Sublayer.FFN: width, Sublayer.ATTENTION: groups})
        if width or groups:
            heads = groups * layer.heads_per_group
            found.append(ExportedLayer(layer.index, own, width, heads, groups))
    hidden = int(text.hidden_size)
    found = [_with_stand_in(layer, is_first=number == 0) for number, layer in enumerate(found)]
    for exported in found:
        for module, shape in exported.shapes(hidden, head_dim).items():
            if name := exported.names.get(f"{module}.weight"):
                check_shape(stored, name, shape)
            if bias := exported.names.get(f"{module}.bias"):
                check_shape(stored, bias, shape[:1])
    return prefix, found


def _with_stand_in(layer: ExportedLayer, *, is_first: bool) -> ExportedLayer:
    """The layer as llama.cpp computes it rightly."""
    if layer.width == 0:
        return ExportedLayer(
            layer.index, layer.names, STAND_IN_CHANNELS, layer.heads, layer.groups, stand_in=Sublayer.FFN
        )
    if layer.heads == 0 and is_first:
        return ExportedLayer(layer.index, layer.names, layer.width, 1, 1, stand_in=Sublayer.ATTENTION)
    return layer


def skip_notes(layers: Sequence[ExportedLayer]) -> tuple[str, ...]:
    """What is in the file though the plan skips it."""
    notes = []
    if ffns := [str(layer.index) for layer in layers if layer.stand_in is Sublayer.FFN]:
        notes.append(
            f"llama.cpp has no layers of attention alone: the skipped FFNs of layers {', '.join(ffns)} are "
            f"{STAND_IN_CHANNELS} channels of zeros in the file"
        )
    if heads := [str(layer.index) for layer in layers if layer.stand_in is Sublayer.ATTENTION]:
        notes.append(
            f"llama.cpp reads the head size from its first layer: the skipped attention of layer {heads[0]} is a head "
            "of zeros in the file"
        )
    return tuple(notes)


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


def _check_modules(
    layer: int, names: Mapping[str, str], text: "PreTrainedConfig", units: Mapping[Sublayer, int]
) -> None:
    """The layer has all tensors of the halves that it keeps, and no others that llama.cpp would not read."""
    family = family_of(text)
    modules = [x for x in _LAYER_TENSORS if (half := family.sublayer_of(f"{x}.weight")) is not None and units[half]]
    for module in modules:
        if f"{module}.weight" not in names:
            raise CheckpointError("every layer must have all of its tensors", values=f"layer {layer}: no {module}")
    known = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
    strange = sorted(set(names) - set(known))
    strange += [name for name in names if name.endswith("layernorm.bias")]
    if strange:
        raise UnsupportedModelError(
            "every tensor of a layer must have its place in llama.cpp's deci architecture",
            values=f"layer {layer} has {strange[0]}",
        )


def layer_tensors(
    number: int, layer: ExportedLayer, stored: Stored, hidden: int, head_dim: int, wanted: TensorType
) -> list[GgufTensor]:
    """The tensors of a layer, which is the file's `number`, in a fixed order."""
    found = []
    for module, shape in layer.shapes(hidden, head_dim).items():
        for kind in ("weight", "bias"):
            name, inside = f"blk.{number}.{_LAYER_TENSORS[module]}.{kind}", f"{module}.{kind}"
            if inside in layer.names:
                rotary_dim = head_dim if module in _ROTARY else 0
                found.append(copied(name, layer.names[inside], stored, wanted, rotary_dim=rotary_dim))
            elif kind == "weight":
                found.append(zeros(name, shape, wanted))
    return found
