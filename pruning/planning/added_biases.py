"""What compensation adds to a checkpoint, in numbers: a bias on every down projection that is cut and has none."""

import itertools
from collections.abc import Iterable

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_layer import TensorSpec
from pruning.anatomy.packed_weights import is_packed, packed_headers


def added_biases(anatomy: ModelAnatomy) -> dict[int, TensorSpec]:
    """The bias [D] that compensation adds to each layer once it is cut; no entry where there is one to add to."""
    names = {t.name for t in anatomy.tensors}
    return {
        weight.site.layer: TensorSpec(_bias_name(weight), weight.shape[:1], weight.dtype, weight.site)
        for weight in _out_weights(anatomy)
        if weight.site is not None and _bias_name(weight) not in names
    }


def bias_parameters(anatomy: ModelAnatomy) -> list[int]:
    """[L] parameters that compensation adds to each layer if it is cut: D, or 0 where there is a bias to add to."""
    names = {t.name for t in anatomy.tensors}
    biased = {weight.site for weight in _out_weights(anatomy) if _bias_name(weight) in names}
    return [0 if Site(layer.index, Sublayer.FFN) in biased else anatomy.hidden_size for layer in anatomy.layers]


def pruned_tensors(anatomy: ModelAnatomy, architecture: Architecture, *, compensates: bool) -> tuple[TensorSpec, ...]:
    """The tensors of the checkpoint of `architecture`, by name: the order in which files are filled.

    Their shapes are the pruned ones, their dtypes the dense model's, but for weights in fewer bits, which are packed;
    those of skipped sub-layers are left out.
    `compensates` adds the biases of the FFNs that are cut.
    """
    options = architecture.options
    # Every plan prices them: `dataclasses.replace` would take four times as long.
    tensors = [
        t if shape is t.shape else TensorSpec(t.name, shape, t.dtype, t.site, t.axis, t.parts)
        for t in anatomy.tensors
        if (shape := t.shape_with(None if t.site is None else options.get(t.site))) is not None
    ]
    if any(option.bits is not None for option in options.values()):
        packed = [packed_specs(t, None if t.site is None else options.get(t.site)) for t in tensors]
        tensors = sorted(itertools.chain.from_iterable(packed), key=lambda t: t.name)
    if compensates:
        widths = anatomy.ffn_widths(architecture)
        biases = added_biases(anatomy).items()
        tensors += [bias for layer, bias in biases if 0 < widths[layer] < anatomy.layers[layer].ffn_width]
        tensors.sort(key=lambda t: t.name)
    return tuple(tensors)


def packed_specs(tensor: TensorSpec, option: Option | None) -> Iterable[TensorSpec]:
    """What holds `tensor`, of the shape that is kept: itself, or where `option` has fewer bits, its packed parts."""
    if option is None or option.bits is None or not is_packed(tensor):
        return (tensor,)
    outputs, inputs = tensor.shape
    headers = packed_headers(tensor.name, (outputs, inputs), tensor.dtype, option.bits)
    return [TensorSpec(*header, tensor.site) for header in headers]


def compensated_weights(anatomy: ModelAnatomy) -> dict[str, TensorSpec]:
    """The dense weight [D, W] of each down projection, by the name that its bias has, or would have."""
    return {_bias_name(weight): weight for weight in _out_weights(anatomy)}


def _out_weights(anatomy: ModelAnatomy) -> list[TensorSpec]:
    """Weights [D, W] whose columns are channels, one a layer."""
    return [t for t in anatomy.tensors if t.axis == 1 and t.holds(Sublayer.FFN)]


def _bias_name(weight: TensorSpec) -> str:
    return weight.name.removesuffix("weight") + "bias"
