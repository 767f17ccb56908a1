"""Giving the layers of a model in memory other sizes: tensors first, then the numbers that modules keep beside them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer, TensorSpec
from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.anatomy.families import family_of
from pruning.anatomy.layer_config import LayerConfig
from pruning.anatomy.tensor_roles import decoder_tensor, layer_tensor
from pruning.checkpoints.anatomy_reader import layer_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def resize_model(model: "PreTrainedModel", architecture: Architecture, *, compensated: Collection[int] = ()) -> None:
    """Give the layers of a dense model the sizes of `architecture`, and biases to those in `compensated`."""
    view = decoder_view(model)
    resize_layers(view, model.config, architecture)
    add_biases(view, compensated)


def resize_layers(view: DecoderView, config: "PreTrainedConfig", architecture: Architecture) -> None:
    """Give dense layers, whose sizes `config` tells, those of `architecture`: new, uninitialised weights, on the same
    device, where it is cut, and nothing in the place of the sub-layers that it skips.
    """
    dense = layer_shapes(config)
    for site, option in architecture.items:
        if option.units == 0:
            view.skip(site)
            continue
        for linear, weight in weights_of(view, dense[site.layer], site.sublayer):
            shape = weight.shape_with(option)
            assert shape is not None, f"{site} keeps {option.units} units"
            bias = None if linear.bias is None else linear.bias.new_empty(shape[0])
            replace_parameters(linear, linear.weight.new_empty(shape), bias)
    set_counts(view, dense, architecture)


def add_biases(view: DecoderView, layers: Collection[int]) -> None:
    """Give the down projections of `layers` an uninitialised bias [D] if they have none; a skipped FFN gets none."""
    for index in layers:
        if view.is_skipped(Site(index, Sublayer.FFN)):
            continue  # loading names the bias as one too many
        out = view.out_projection(index)
        if "bias" not in dict(out.named_parameters()):
            like = next(
                x for x in out.parameters() if x.is_floating_point()
            )  # the weight, or the scales of a packed one
            out.bias = nn.Parameter(like.new_empty(out.out_features), requires_grad=like.requires_grad)


def biased_layers(config: "PreTrainedConfig", names: Iterable[str]) -> set[int]:
    """The decoder layers whose down projection has a bias, by the checkpoint's tensor names.

    No config field of transformers says so of one projection and one layer (Llama's `mlp_bias` is about all three of
    every layer), so the weight files are where it is recorded.
    """
    family = family_of(config.get_text_config(decoder=True))
    found = (decoder_tensor(name) for name in names)
    return {layer for layer, inside in filter(None, found) if inside == f"{family.ffn_out}.bias"}


def weights_of(view: DecoderView, layer: DecoderLayer, sublayer: Sublayer) -> Iterator[tuple[nn.Linear, TensorSpec]]:
    """The linear layers that hold units of one half of the dense `layer`, each with what its weight holds."""
    for name in view.family.linears(sublayer):
        linear = view.projection(layer.index, name)
        header = (name, tuple(linear.weight.shape), "")
        yield linear, layer_tensor(header, f"{name}.weight", layer, view.family)


def set_counts(view: DecoderView, dense: Sequence[DecoderLayer], architecture: Architecture) -> None:
    """The numbers that modules keep beside their weights, for whoever reads them; what is skipped has none."""
    widths = architecture.units(Sublayer.FFN, [layer.ffn_width for layer in dense])
    kv_groups = architecture.units(Sublayer.ATTENTION, [layer.num_kv_groups for layer in dense])
    for layer, width, groups in zip(dense, widths, kv_groups, strict=True):
        set_layer_counts(view, layer, width, groups)


def set_layer_counts(view: DecoderView, dense: DecoderLayer, width: int, groups: int) -> None:
    """Those of one layer, which keeps `width` channels and `groups` KV groups."""
    ffn = view.layers[dense.index].get_submodule(view.family.ffn)
    attention: Any = view.layers[dense.index].get_submodule(view.family.attention)
    heads = groups * dense.heads_per_group
    for module, name, count in (
        (ffn, view.family.width_attribute, width),
        (attention, "num_heads", heads),
        (attention, "num_key_value_heads", groups),
    ):
        if hasattr(module, name):
            setattr(module, name, count)
    if view.family.rows_from_config and groups:
        attention.config = LayerConfig(attention.config, num_attention_heads=heads, num_key_value_heads=groups)


def replace_parameters(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Put new tensors, which nobody else holds, into `linear`; one of its own parameters stays what it is."""
    requires_grad = linear.weight.requires_grad
    if weight is not linear.weight:
        linear.weight = nn.Parameter(weight.detach(), requires_grad=requires_grad)
    if bias is not None and bias is not linear.bias:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=requires_grad)
    linear.out_features, linear.in_features = weight.shape
