"""Bias compensation: a bias on the down projection that stands in for the mean of what the removed channels added.

FLAP (arXiv 2312.11983): sum_j W_down[:, j] x_j over the removed j becomes sum_j W_down[:, j] mean(x_j). The residual
stream keeps its mean on calibration data, for D parameters in every layer that is cut. Which means: those that the
ranking carries (`Ranking.ffn_means`).
"""

from typing import TYPE_CHECKING

from pruning.anatomy import DecoderSizes, ModelAnatomy, TensorSpec, Unit
from pruning.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from pruning.ranking import Ranking

BIAS_ROWS = 128
"""Rows of a weight that are summed at once: the same in memory and from files, so that both make the same calls."""


def compensated_bias(
    weight: "torch.Tensor", bias: "torch.Tensor | None", ranking: "Ranking", layer: int, width: int
) -> "torch.Tensor":
    """The bias [D] of `layer`'s down projection when it keeps `width` channels, in the weight's dtype.

    Summed in float64 on the CPU and in blocks of BIAS_ROWS, so that cutting a model in memory and cutting its files
    give the same bits.

    Args:
        weight: [D, W], dense.
        bias: [D], if the dense projection has one.
        ranking: with `ffn_means`.

    Raises:
        CheckpointError: a value does not fit the dtype.
    """
    import torch

    blocks = [
        compensated_bias_rows(
            weight[first : first + BIAS_ROWS],
            None if bias is None else bias[first : first + BIAS_ROWS],
            ranking,
            layer,
            width,
        )
        for first in range(0, len(weight), BIAS_ROWS)
    ]
    found = torch.cat(blocks)
    check_finite_bias(found, layer)
    return found.to(weight.device)


def check_finite_bias(bias: "torch.Tensor", layer: int) -> None:
    """Raises CheckpointError if a value of `layer`'s bias is not finite in its dtype: no output would be, then."""
    if not bool(bias.isfinite().all()):
        raise CheckpointError(
            "what stands in for removed channels must fit the weights' dtype",
            values=f"a bias of layer {layer} is not finite in {str(bias.dtype).removeprefix('torch.')}",
            remedy="Convert the checkpoint to bfloat16 or float32, or plan with a method that adds no biases",
        )


def compensated_bias_rows(
    weight: "torch.Tensor", bias: "torch.Tensor | None", ranking: "Ranking", layer: int, width: int
) -> "torch.Tensor":
    """`compensated_bias` of the rows [n, W] of a weight, n at most BIAS_ROWS; on the CPU."""
    import torch

    assert ranking.ffn_means is not None
    removed = torch.from_numpy(ranking.removed(layer, width))
    means = torch.from_numpy(ranking.ffn_means[layer])[removed].double()
    compensation = weight.detach().cpu()[:, removed].double() @ means
    if bias is not None:
        compensation += bias.detach().cpu().double()
    return compensation.to(dtype=weight.dtype)


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
