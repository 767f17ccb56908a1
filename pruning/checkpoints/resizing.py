"""Giving the layers of a model in memory other sizes: tensors first, then the numbers that modules keep beside them."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.anatomy.decoder_layer import DecoderSizes, TensorSpec
from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.anatomy.layer_config import LayerConfig
from pruning.anatomy.tensor_roles import unit_axis
from pruning.checkpoints.anatomy_reader import layer_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resize_model(model: "PreTrainedModel", sizes: DecoderSizes, *, compensated: Collection[int] = ()) -> None:
    """Give every layer of a dense model `sizes`, with new, uninitialised weights on the same device where it is cut.

    The down projections of the layers in `compensated` get a bias [D] if they have none.
    """
    view = decoder_view(model)
    dense = layer_shapes(model.config)
    for index, layer in enumerate(dense):
        width, groups = sizes.ffn_widths[index], sizes.kv_groups[index]
        names = [] if width == layer.ffn_width else [*view.family.ffn_in, view.family.ffn_out]
        if groups != layer.num_kv_groups:
            names += [*view.family.attention_in, view.family.attention_out]
        for name in names:
            linear = view.projection(index, name)
            found = unit_axis(f"{name}.weight", layer, view.family)
            assert found is not None
            shape = TensorSpec(name, tuple(linear.weight.shape), "", index, *found).shape_with(sizes)
            bias = None if linear.bias is None else linear.bias.new_empty(shape[0])
            replace_parameters(linear, linear.weight.new_empty(shape), bias)
        out = view.out_projection(index)
        if index in compensated and "bias" not in dict(out.named_parameters()):
            replace_parameters(out, out.weight, out.weight.new_empty(out.out_features))
        set_counts(view, index, width, groups, layer.heads_per_group)


def set_counts(view: DecoderView, layer: int, width: int, groups: int, heads_per_group: int) -> None:
    """The numbers that modules keep beside their weights, for whoever reads them."""
    ffn = view.layers[layer].get_submodule(view.family.ffn)
    attention: Any = view.layers[layer].get_submodule(view.family.attention)
    counts = {"num_heads": groups * heads_per_group, "num_key_value_heads": groups}
    for module, name, count in [
        (ffn, view.family.width_attribute, width),
        *((attention, *item) for item in counts.items()),
    ]:
        if hasattr(module, name):
            setattr(module, name, count)
    if view.family.rows_from_config:
        attention.config = LayerConfig(
            attention.config, num_attention_heads=groups * heads_per_group, num_key_value_heads=groups
        )


def replace_parameters(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Put new tensors, which nobody else holds, into `linear`; one of its own parameters stays what it is."""
    requires_grad = linear.weight.requires_grad
    if weight is not linear.weight:
        linear.weight = nn.Parameter(weight.detach(), requires_grad=requires_grad)
    if bias is not None and bias is not linear.bias:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=requires_grad)
    linear.out_features, linear.in_features = weight.shape
