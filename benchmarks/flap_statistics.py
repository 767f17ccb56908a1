"""What FLAP needs of a model, and nothing beside it: what its time is measured by.

The product measures for all allocators at once: OWL's outliers, ShortGPT's cosines and the norms of every linear's
inputs are over a third of that time, and would count as FLAP's.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pruning.anatomy.decoder_view import decoder_view
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.data.batches import Batch
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.measuring.statistics import ModelStatistics, StatisticsKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Inputs:
    """Mean and sum of squared deviations of a projection's input [W] over real tokens, in float64 from batch to batch.

    Batches are merged by the update of Chan, Golub and LeVeque, as the product's are.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.deviations = torch.zeros(width, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Take in `rows` [N, W]."""
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        shift, total = mean.double() - self.mean, self.count + len(rows)
        self.mean += shift * (len(rows) / total)
        self.deviations += variance.double() * len(rows) + shift.square() * (self.count * len(rows) / total)
        self.count = total


@torch.inference_mode()
def flap_statistics(model: "PreTrainedModel", batches: Sequence[Batch]) -> ModelStatistics:
    """Statistics of kind ACTIVATIONS that are good for `allocate_flap` only, of a dense `model` on the CPU.

    One forward pass of the decoder. `ffn_mean`, `ffn_variance` and `down_norm` are measured, over the real tokens of
    all `batches`; all else is zeros.
    """
    anatomy = anatomy_of(model)
    view = decoder_view(model.eval())
    found = [_Inputs(layer.ffn_width) for layer in anatomy.layers]
    real = torch.empty(0)

    def record(layer: int, _module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        found[layer].add(args[0][real])

    with ExitStack() as hooks:
        for layer in range(anatomy.num_layers):
            handle = view.out_projection(layer).register_forward_pre_hook(partial(record, layer))
            hooks.callback(handle.remove)
        for batch, inputs in zip(batches, decoder_inputs(model, batches), strict=True):
            real = batch.inputs["attention_mask"].bool()
            view.decoder(**inputs, use_cache=False)
    arrays: dict[str, FloatArray] = {
        name: np.zeros(anatomy.num_layers) for name in ("outlier_ratio", "block_influence")
    }
    for layer, inputs_of in enumerate(found):
        width = anatomy.layers[layer].ffn_width
        arrays |= {f"layers.{layer}.{name}": np.zeros(width) for name in ("ffn_second_moment", "down_mean_abs")}
        arrays[f"layers.{layer}.ffn_mean"] = inputs_of.mean.numpy()
        arrays[f"layers.{layer}.ffn_variance"] = (inputs_of.deviations / max(inputs_of.count - 1, 1)).numpy()
        arrays[f"layers.{layer}.down_norm"] = view.out_projection(layer).weight.float().norm(dim=0).double().numpy()
    return ModelStatistics(StatisticsKind.ACTIVATIONS, anatomy.fingerprint, arrays)
