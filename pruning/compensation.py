"""Bias compensation: a bias on the down projection that stands in for the mean of what the removed channels added.

FLAP (arXiv 2312.11983): sum_j W_down[:, j] x_j over the removed j becomes sum_j W_down[:, j] mean(x_j). The residual
stream keeps its mean on calibration data, for D parameters in every layer that is cut. Which means: those that the
ranking carries (`Ranking.ffn_means`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pruning.anatomy import ModelAnatomy, TensorSpec

if TYPE_CHECKING:
    import torch

    from pruning.ranking import Ranking


def compensated_bias(
    weight: "torch.Tensor", bias: "torch.Tensor | None", ranking: "Ranking", layer: int, width: int
) -> "torch.Tensor":
    """The bias [D] of `layer`'s down projection when it keeps `width` channels, in the weight's dtype.

    Summed in float64 on the CPU, so that cutting a model in memory and cutting its files give the same bits.

    Args:
        weight: [D, W], dense.
        bias: [D], if the dense projection has one.
        ranking: with `ffn_means`.
    """
    import torch

    assert ranking.ffn_means is not None
    removed = torch.from_numpy(ranking.removed(layer, width))
    means = torch.from_numpy(ranking.ffn_means[layer])[removed].double()
    dense = weight.detach().cpu()
    compensation = dense[:, removed].double() @ means
    if bias is not None:
        compensation += bias.detach().cpu().double()
    return compensation.to(dtype=weight.dtype, device=weight.device)


def added_biases(anatomy: ModelAnatomy) -> dict[int, TensorSpec]:
    """The bias [D] that compensation adds to each layer once it is cut; no entry where there is one to add to."""
    names = {t.name for t in anatomy.tensors}
    return {
        weight.ffn_layer: TensorSpec(_bias_name(weight), weight.shape[:1], weight.dtype)
        for weight in _out_weights(anatomy)
        if weight.ffn_layer is not None and _bias_name(weight) not in names
    }


def bias_parameters(anatomy: ModelAnatomy) -> list[int]:
    """[L] parameters that compensation adds to each layer if it is cut: D, or 0 where there is a bias to add to."""
    names = {t.name for t in anatomy.tensors}
    biased = {weight.ffn_layer for weight in _out_weights(anatomy) if _bias_name(weight) in names}
    return [0 if layer.index in biased else anatomy.hidden_size for layer in anatomy.layers]


def pruned_tensors(anatomy: ModelAnatomy, widths: Sequence[int], *, compensates: bool) -> tuple[TensorSpec, ...]:
    """The tensors of the checkpoint whose FFNs have `widths` [L], by name: the order in which files are filled.

    Their shapes are the pruned ones. `compensates` adds the biases of the layers that are cut.
    """
    tensors = [t if t.ffn_layer is None else replace(t, shape=t.shape_with(widths)) for t in anatomy.tensors]
    if compensates:
        biases = added_biases(anatomy).items()
        tensors += [bias for layer, bias in biases if widths[layer] < anatomy.layers[layer].ffn_width]
        tensors.sort(key=lambda t: t.name)
    return tuple(tensors)


def compensated_weights(anatomy: ModelAnatomy) -> dict[str, TensorSpec]:
    """The dense weight [D, W] of each down projection, by the name that its bias has, or would have."""
    return {_bias_name(weight): weight for weight in _out_weights(anatomy)}


def _out_weights(anatomy: ModelAnatomy) -> list[TensorSpec]:
    """Weights [D, W] whose columns are channels, one a layer."""
    return [t for t in anatomy.tensors if t.ffn_axis == 1]


def _bias_name(weight: TensorSpec) -> str:
    return weight.name.removesuffix("weight") + "bias"
