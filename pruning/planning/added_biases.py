"""What compensation adds to a checkpoint, in numbers: a bias on every down projection that is cut and has none."""

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.decoder_layer import DecoderSizes, TensorSpec, Unit


def added_biases(anatomy: ModelAnatomy) -> dict[int, TensorSpec]:
    """The bias [D] that compensation adds to each layer once it is cut; no entry where there is one to add to."""
    names = {t.name for t in anatomy.tensors}
    return {
        weight.layer: TensorSpec(_bias_name(weight), weight.shape[:1], weight.dtype)
        for weight in _out_weights(anatomy)
        if weight.layer is not None and _bias_name(weight) not in names
    }


def bias_parameters(anatomy: ModelAnatomy) -> list[int]:
    """[L] parameters that compensation adds to each layer if it is cut: D, or 0 where there is a bias to add to."""
    names = {t.name for t in anatomy.tensors}
    biased = {weight.layer for weight in _out_weights(anatomy) if _bias_name(weight) in names}
    return [0 if layer.index in biased else anatomy.hidden_size for layer in anatomy.layers]


def pruned_tensors(anatomy: ModelAnatomy, sizes: DecoderSizes, *, compensates: bool) -> tuple[TensorSpec, ...]:
    """The tensors of the checkpoint whose layers keep `sizes`, by name: the order in which files are filled.

    Their shapes are the pruned ones. `compensates` adds the biases of the layers that are cut.
    """
    # Every plan prices them: `dataclasses.replace` would take four times as long.
    tensors = [
        t if t.axis is None else TensorSpec(t.name, t.shape_with(sizes), t.dtype, t.layer, t.axis, t.parts)
        for t in anatomy.tensors
    ]
    if compensates:
        biases = added_biases(anatomy).items()
        tensors += [bias for layer, bias in biases if sizes.ffn_widths[layer] < anatomy.layers[layer].ffn_width]
        tensors.sort(key=lambda t: t.name)
    return tuple(tensors)


def compensated_weights(anatomy: ModelAnatomy) -> dict[str, TensorSpec]:
    """The dense weight [D, W] of each down projection, by the name that its bias has, or would have."""
    return {_bias_name(weight): weight for weight in _out_weights(anatomy)}


def _out_weights(anatomy: ModelAnatomy) -> list[TensorSpec]:
    """Weights [D, W] whose columns are channels, one a layer."""
    return [t for t in anatomy.tensors if t.axis == 1 and t.holds(Unit.FFN_CHANNEL)]


def _bias_name(weight: TensorSpec) -> str:
    return weight.name.removesuffix("weight") + "bias"


def sizes_of(anatomy: ModelAnatomy, architecture: Architecture) -> DecoderSizes:
    """Until surgery knows architectures."""
    return anatomy.sizes_with(anatomy.ffn_widths(architecture), anatomy.kv_groups(architecture))
