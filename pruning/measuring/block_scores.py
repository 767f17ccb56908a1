"""ECoFLaP's zeroth-order scores of whole layers (arXiv 2310.02998): of decoder layers, and of vision layers.

A layer's score is the sum over all of its matrices of |g|, g the derivative of the loss along one random direction for
each batch (`zeroth_order_statistics`). The whole model is in memory, in float32.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pruning.anatomy.architecture import Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.arrays import FloatArray
from pruning.cutting.rewriting.blocks import Part, vision_layers
from pruning.data.batches import Batch
from pruning.errors import CheckpointError
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.measuring.zeroth_order_statistics import (
    EPSILON,
    at_least_float32,
    layer_scores,
    mean_answer_loss,
    noise_seed,
    projected_gradient,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_block_scores(
    model: "PreTrainedModel",
    batches: Sequence[Batch],
    parts: Sequence[Part],
    *,
    seed: int = 0,
    epsilon: float = EPSILON,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[Part, FloatArray]:
    """Scores [L] and [V] of the layers of `parts`; every weight is bit for bit as before when this returns or raises.

    A vision layer costs two passes of the whole model for every matrix and batch, a decoder layer two from itself on.
    `on_batch` is told how many pairs of a matrix and a batch are done, of how many in all parts.

    Raises CheckpointError if a loss is not finite; the layer is named.
    """
    scores: dict[Part, FloatArray] = {}
    counts = {part: len(batches) * _num_matrices(model, part) for part in parts}
    done = 0

    def tell(of_part: int, _: int) -> None:
        if on_batch is not None:
            on_batch(done + of_part, sum(counts.values()))

    with at_least_float32(model):
        for part in parts:
            if part is Part.LANGUAGE:
                scores[part] = layer_scores(model, batches, tuple(Sublayer), seed, epsilon, tell)
            else:
                scores[part] = _vision_scores(model, batches, seed, epsilon, tell)
            done += counts[part]
            if not np.isfinite(scores[part]).all():
                raise CheckpointError(
                    "losses must be finite numbers",
                    values=f"{part} layer {int(np.flatnonzero(~np.isfinite(scores[part]))[0])}",
                    remedy="The model's activations overflow its dtype: save it as float32 or bfloat16",
                )
    return scores


@torch.inference_mode()
def _vision_scores(
    model: "PreTrainedModel",
    batches: Sequence[Batch],
    seed: int,
    epsilon: float,
    on_batch: Callable[[int, int], None],
) -> FloatArray:
    view, layers = decoder_view(model), _vision_linears(model)
    linears = [(index, linear) for index, own in enumerate(layers) for linear in own]

    def loss(batch: Batch) -> float:
        (inputs,) = decoder_inputs(model, [batch])
        return mean_answer_loss(view, view.decoder(**inputs, use_cache=False).last_hidden_state, batch)

    scores, done = np.zeros(len(layers)), 0
    for index, linear in linears:
        for batch in batches:
            # Other noise than the decoder's: the tower's steps count on from what no decoder reaches.
            noise = torch.Generator().manual_seed(noise_seed(seed, _VISION_STEPS + done))
            scores[index] += abs(projected_gradient(linear, lambda own=batch: loss(own), noise, epsilon))  # type: ignore[misc]
            done += 1
            on_batch(done, len(linears) * len(batches))
    return scores


def _num_matrices(model: "PreTrainedModel", part: Part) -> int:
    """That are scored, in all layers of `part`."""
    if part is Part.VISION:
        return sum(map(len, _vision_linears(model)))
    view = decoder_view(model)
    return len(view.layers) * sum(len(view.family.linears(sublayer)) for sublayer in Sublayer)


def _vision_linears(model: "PreTrainedModel") -> list[list[nn.Linear]]:
    """Those of each layer [V] of the vision tower; none where there is no tower."""
    found = vision_layers(model)
    layers = () if found is None else found[1]
    return [[linear for linear in layer.modules() if isinstance(linear, nn.Linear)] for layer in layers]


_VISION_STEPS = 2**32
