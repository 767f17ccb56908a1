"""Bias compensation: a bias on the down projection that stands in for the mean of what the removed channels added.

FLAP (arXiv 2312.11983): sum_j W_down[:, j] x_j over the removed j becomes sum_j W_down[:, j] mean(x_j). The residual
stream keeps its mean on calibration data, for D parameters in every layer that is cut. Which means: those that the
ranking carries (`Ranking.ffn_means`).
"""

from typing import TYPE_CHECKING

from pruning.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from pruning.planning.ranking import Ranking

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
