"""How much each FFN channel matters: the size of what it adds to the residual stream on calibration data.

score_j = ||W_down[:, j]||_2 * sqrt(mean over tokens of x_j^2), with x the input of the down projection: the column
form of Wanda's |W| * ||x|| (Sun et al., arXiv 2306.11695), which structured ports (Wanda-sp) sum over a column.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pruning.batches import Batch
from pruning.decoder import decoder_inputs, decoder_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def channel_scores(
    model: "PreTrainedModel", batches: Sequence[Batch], *, on_batch: Callable[[int, int], None] | None = None
) -> list[NDArray[np.float64]]:
    """Scores [L][W] of every FFN channel; padding does not count. `on_batch(done, total)` is told of progress."""
    view = decoder_view(model)
    squares = [torch.zeros(view.out_projection(i).in_features, dtype=torch.float64) for i in range(len(view.ffns))]
    mask: torch.Tensor | None = None

    def accumulate(layer: int) -> Any:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].float()
            assert mask is not None
            squares[layer] += (x * mask.unsqueeze(-1)).square().sum(dim=(0, 1)).double().cpu()

        return hook

    handles = [view.out_projection(i).register_forward_pre_hook(accumulate(i)) for i in range(len(view.ffns))]
    tokens = 0
    try:
        for done, batch in enumerate(batches, start=1):
            (kwargs,) = decoder_inputs(model, [batch])
            mask = batch.inputs["attention_mask"].to(model.device, torch.float32)
            tokens += int(mask.sum())
            view.decoder(**kwargs, use_cache=False)
            if on_batch is not None:
                on_batch(done, len(batches))
    finally:
        for handle in handles:
            handle.remove()
    scores = []
    for layer, total in enumerate(squares):
        norm = view.out_projection(layer).weight.float().norm(dim=0).double().cpu()
        scores.append((norm * (total / tokens).sqrt()).numpy())
    return scores
