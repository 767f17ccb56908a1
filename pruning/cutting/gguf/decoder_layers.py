"""The decoder layers of a GGUF file: which of the checkpoint's are in it, with which sizes and tensors.

A layer of which a plan left nothing is not written: those behind it move up. Attention that is skipped is written as
no heads, which llama.cpp's `deci` architecture reads and passes by, with two exceptions (src/models/deci.cpp and
src/llama-model.cpp). It takes the head size of all layers from the first one, if that has heads; and it loses what the
attention of a layer without an FFN adds. There a stand-in of zeros is written, one head or `STAND_IN_CHANNELS`
channels: it adds exactly nothing. Architectures that give all layers one size get layers filled up with zeros
(`layouts`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.anatomy.families import family_of
from pruning.anatomy.gguf_types import BLOCK, STAND_IN_CHANNELS, TensorType
from pruning.anatomy.layer_config import recorded_architecture
from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.cutting.gguf.layouts import Layout
from pruning.cutting.gguf.tensors import GgufTensor, Weights, check_shape, copied, zeros
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""A layer's linear modules -> llama.cpp's names (src/llama-arch.cpp); the norms' are in `layouts`."""

_ROTARY = ("self_attn.q_proj", "self_attn.k_proj")
_QUERY_NORM = "self_attn.q_norm"


@dataclass(frozen=True, slots=True)
class LayerUnits:
    """FFN channels, query heads, and key/value heads of a layer; 0: it skips that half."""

    width: int
    heads: int
    groups: int

    def shapes(self, hidden: int, head_dim: int, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Of the weights of a layer's modules; those of a half that it skips are left out."""
        queries, keys = self.heads * head_dim, self.groups * head_dim
        attention: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(layout.attention_norms, (hidden,)),
            **dict.fromkeys(layout.head_norms, (head_dim,)),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
        }
        ffn: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(layout.ffn_norms, (hidden,)),
            "mlp.gate_proj": (self.width, hidden),
            "mlp.up_proj": (self.width, hidden),
            "mlp.down_proj": (hidden, self.width),
        }
        return (attention if self.heads else {}) | (ffn if self.width else {})


@dataclass(frozen=True, slots=True)
class ExportedLayer:
    """A layer of the checkpoint that is in the file.

    Attributes:
        index: its number in the checkpoint.
        names: name inside the layer -> the checkpoint's name.
        kept: what the checkpoint has of it.
        written: what the file has of it; what it has more is zeros.
    """

    index: int
    names: Mapping[str, str]
    kept: LayerUnits
    written: LayerUnits


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """[L] of each layer of the file: FFN width, query heads, and key/value heads."""

    ffn_widths: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]

    @classmethod
    def of(cls, layers: Sequence[ExportedLayer]) -> "LayerSizes":
        units = [layer.written for layer in layers]
        return cls(tuple(x.width for x in units), tuple(x.heads for x in units), tuple(x.groups for x in units))

    @property
    def uniform(self) -> bool:
        """Whether all layers are alike."""
        return all(len(set(sizes)) == 1 for sizes in (self.ffn_widths, self.heads, self.kv_heads))


def exported_layers(
    config: "PreTrainedConfig", stored: Weights, head_dim: int, layout: Layout, *, num_fixed: int = 0
) -> tuple[str, list[ExportedLayer]]:
    """The prefix of the decoder's tensors, and the layers of the file, in order. The first `num_fixed` layers are
    written whatever is left of them.

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
    if layout.all_heads and int(text.num_attention_heads) * head_dim != int(text.hidden_size):
        raise UnsupportedModelError(
            f"heads must span the hidden size in llama.cpp's {layout.name} architecture",
            values=f"{text.num_attention_heads} heads of {head_dim} values, a hidden size of {text.hidden_size}",
        )
    kept: list[tuple[int, LayerUnits]] = []
    for layer, width, groups in zip(dense, widths, kv_groups, strict=True):
        _check_modules(layer.index, names[layer.index], text, {Sublayer.FFN: width, Sublayer.ATTENTION: groups}, layout)
        if width or groups or layer.index < num_fixed:
            kept.append((layer.index, LayerUnits(width, groups * layer.heads_per_group, groups)))
    all_heads = LayerUnits(0, int(text.num_attention_heads), int(text.num_key_value_heads))
    written = _as_written([units for _, units in kept], layout, all_heads if layout.all_heads else LayerUnits(0, 0, 0))
    found = [
        ExportedLayer(index, names[index], units, of_file)
        for (index, units), of_file in zip(kept, written, strict=True)
    ]
    hidden = int(text.hidden_size)
    for exported in found:
        for module, shape in exported.kept.shapes(hidden, head_dim, layout).items():
            check_shape(stored, exported.names[f"{module}.weight"], shape)
            if bias := exported.names.get(f"{module}.bias"):
                check_shape(stored, bias, shape[:1])
    return prefix, found


def _as_written(kept: Sequence[LayerUnits], layout: Layout, least: LayerUnits) -> list[LayerUnits]:
    """What the file has of each layer, so that llama.cpp computes what is `kept`."""
    if layout.per_layer:
        return [_with_stand_in(units, is_first=number == 0) for number, units in enumerate(kept)]
    widest = max(x.width for x in kept)
    common = LayerUnits(
        -(-max(widest, 1) // BLOCK) * BLOCK,
        max(least.heads, *(x.heads for x in kept)),
        max(least.groups, *(x.groups for x in kept)),
    )
    return [common] * len(kept)


def _with_stand_in(units: LayerUnits, *, is_first: bool) -> LayerUnits:
    """The layer as `deci` computes it rightly."""
    if units.width == 0:
        return replace(units, width=STAND_IN_CHANNELS)
    if units.heads == 0 and is_first:
        return replace(units, heads=1, groups=1)
    return units


def zero_notes(layers: Sequence[ExportedLayer], layout: Layout) -> tuple[str, ...]:
    """What is in the file though the plan took it away."""
    if not layout.per_layer:
        return _filled_up_notes(layers, layout)
    notes = []
    if ffns := [str(layer.index) for layer in layers if layer.kept.width == 0]:
        notes.append(
            f"llama.cpp has no layers of attention alone: the skipped FFNs of layers {', '.join(ffns)} are "
            f"{STAND_IN_CHANNELS} channels of zeros in the file"
        )
    if heads := [str(layer.index) for layer in layers if layer.kept.heads == 0 and layer.written.heads]:
        notes.append(
            f"llama.cpp reads the head size from its first layer: the skipped attention of layer {heads[0]} is a head "
            "of zeros in the file"
        )
    return tuple(notes)


def _filled_up_notes(layers: Sequence[ExportedLayer], layout: Layout) -> tuple[str, ...]:
    channels, heads = (
        1.0 - sum(getattr(x.kept, name) for x in layers) / sum(getattr(x.written, name) for x in layers)
        for name in ("width", "heads")
    )
    if not channels and not heads:
        return ()
    of = " and ".join(
        f"{share:.0%} of {what}" for share, what in ((channels, "FFN channels"), (heads, "heads")) if share
    )
    return (
        f"llama.cpp gives all layers of {layout.name} one FFN width and one number of heads: {of} in the file are "
        "zeros that fill layers up to the widest (plans of equal widths, --method uniform, need none of widths that "
        f"are a multiple of {BLOCK})",
    )


def _decoder_names(stored: Weights, num_layers: int) -> tuple[str, list[dict[str, str]]]:
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
    layer: int, names: Mapping[str, str], text: "PreTrainedConfig", units: Mapping[Sublayer, int], layout: Layout
) -> None:
    """The layer has all tensors of the halves that it keeps, and no others that llama.cpp would not read."""
    family = family_of(text)
    every = [*_PROJECTIONS, *layout.norms]
    modules = [x for x in every if (half := family.sublayer_of(f"{x}.weight")) is not None and units[half]]
    for module in modules:
        if f"{module}.weight" not in names:
            raise CheckpointError("every layer must have all of its tensors", values=f"layer {layer}: no {module}")
    biased = _PROJECTIONS.keys() if layout.biased is None else layout.biased
    known = {f"{x}.weight" for x in modules} | {f"{x}.bias" for x in modules if x in biased}
    if strange := sorted(set(names) - known):
        raise UnsupportedModelError(
            f"every tensor of a layer must have its place in llama.cpp's {layout.name or 'deci'} architecture",
            values=f"layer {layer} has {strange[0]}",
        )


def layer_tensors(
    number: int,
    layer: ExportedLayer,
    stored: Weights,
    hidden: int,
    head_dim: int,
    layout: Layout,
    wanted: TensorType,
    *,
    query_scale: float = 1.0,
) -> list[GgufTensor]:
    """The tensors of a layer, which is the file's `number`, in a fixed order. `query_scale` is what the norm of queries
    must multiply them with besides its weights.
    """
    names = {**_PROJECTIONS, **layout.norms}
    found = []
    for module, shape in layer.written.shapes(hidden, head_dim, layout).items():
        shift = layout.norm_shift if module in layout.norms else 0.0
        scale = query_scale if module == _QUERY_NORM else 1.0
        for kind, extent in (("weight", shape), ("bias", shape[:1])):
            name = f"blk.{number}.{names[module]}.{kind}"
            if source := layer.names.get(f"{module}.{kind}"):
                rotary_dim = head_dim if layout.rotates_pairs and module in _ROTARY else 0
                change = {"shift": shift, "scale": scale}
                found.append(copied(name, source, stored, wanted, shape=extent, rotary_dim=rotary_dim, **change))
            elif kind == "weight":
                found.append(zeros(name, shape, wanted))
    return found
