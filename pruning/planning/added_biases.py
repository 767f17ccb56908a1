"""What compensation adds to a checkpoint, in numbers: a bias on every down projection that is cut and has none."""

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.decoder_layer import TensorSpec


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

    Their shapes are the pruned ones, their dtypes the dense model's; those of skipped sub-layers are left out.
    `compensates` adds the biases of the FFNs that are cut.
    """
    options = architecture.options
    # Every plan prices them: `dataclasses.replace` would take four times as long.
    tensors = [
        t if shape is t.shape else TensorSpec(t.name, shape, t.dtype, t.site, t.axis, t.parts)
        for t in anatomy.tensors
        if (shape := t.shape_with(None if t.site is None else options.get(t.site))) is not None
    ]
    if compensates:
        widths = anatomy.ffn_widths(architecture)
        biases = added_biases(anatomy).items()
        tensors += [bias for layer, bias in biases if 0 < widths[layer] < anatomy.layers[layer].ffn_width]
        tensors.sort(key=lambda t: t.name)
    return tuple(tensors)


def compensated_weights(anatomy: ModelAnatomy) -> dict[str, TensorSpec]:
    """The dense weight [D, W] of each down projection, by the name that its bias has, or would have."""
    return {_bias_name(weight): weight for weight in _out_weights(anatomy)}


def _out_weights(anatomy: ModelAnatomy) -> list[TensorSpec]:
    """Weights [D, W] whose columns are channels, one a layer."""
    return [t for t in anatomy.tensors if t.axis == 1 and t.holds(Sublayer.FFN)]


def _bias_name(weight: TensorSpec) -> str:
    return weight.name.removesuffix("weight") + "bias"
