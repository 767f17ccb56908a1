"""Statistics without gradients: ECoFLaP's zeroth-order importance (arXiv 2310.02998).

For one weight matrix W and one batch, with z ~ N(0, 1) of W's shape, the projected gradient is
g = (L(W + eps z) - L(W - eps z)) / (2 eps). A matrix scores the sum of |g| over batches, a layer's FFN the sum over its
matrices.

Measured in float32, whatever dtype the model has. In bfloat16 most of the difference of two losses is rounding: on the
reference model, 32 conversations, layers' scores come out 3 to 20 times as large, and correlate at .73 with those of
float32, where two seeds in float32 correlate at .96.

Memory: the model in float32 (4 bytes a parameter: twice what it takes in bfloat16), a few copies of one matrix, and
each batch's hidden states at one layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pruning.anatomy.architecture import Sublayer
from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.arrays import FloatArray
from pruning.data.batches import Batch
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.forward.layerwise import LayerCalls, record_layer_calls
from pruning.measuring.answer_loss import num_answer_tokens, summed_answer_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EPSILON = 1e-3
"""The paper's step."""


@dataclass
class _BatchState:
    """One batch, and the hidden states [B, T, D] that enter the layer whose turn it is."""

    batch: Batch
    calls: LayerCalls
    hidden: torch.Tensor


def measure_zeroth_order(
    model: "PreTrainedModel",
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    epsilon: float = EPSILON,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, FloatArray]:
    """The arrays of `StatisticsKind.ZEROTH_ORDER`; every weight is bit for bit as before when this returns or raises.

    Half-precision weights are float32 meanwhile, and the numbers are those of the same weights in float32. Layers are
    taken in order, and each pass begins at the layer that is perturbed: what comes before it is the same for both
    signs. Noise is drawn on the CPU, so that devices agree on it.
    """
    with at_least_float32(model):
        return {"ffn_zeroth_order": layer_scores(model, batches, (Sublayer.FFN,), seed, epsilon, on_batch)}


@torch.inference_mode()
def layer_scores(
    model: "PreTrainedModel",
    batches: Sequence[Batch],
    sublayers: Sequence[Sublayer],
    seed: int,
    epsilon: float,
    on_batch: Callable[[int, int], None] | None,
) -> FloatArray:
    """One score a decoder layer [L]: the sum over the matrices of its `sublayers`. The model is to be float32."""
    view = decoder_view(model)
    states = []
    for batch in batches:
        (inputs,) = decoder_inputs(model, [batch])
        calls = record_layer_calls(view, inputs)
        states.append(_BatchState(batch, calls, calls.hidden))
    scores = np.zeros(len(view.layers))
    matrices = [name for sublayer in sublayers for name in view.family.linears(sublayer)]
    total, done = len(view.layers) * len(matrices) * len(states), 0
    for layer in range(len(view.layers)):
        for name in matrices:
            linear = view.projection(layer, name)
            for state in states:
                noise = torch.Generator().manual_seed(noise_seed(seed, done))
                loss = partial(_loss_from, view, layer, state)
                scores[layer] += abs(projected_gradient(linear, loss, noise, epsilon))
                done += 1
                if on_batch is not None:
                    on_batch(done, total)
        for state in states:
            state.hidden = state.calls.through(layer, view.layers[layer], state.hidden)
    return scores


def projected_gradient(linear: nn.Linear, loss: Callable[[], float], noise: torch.Generator, epsilon: float) -> float:
    """The derivative of `loss` along z of the weight's shape, by central difference; the weight stays as it was."""
    weight = linear.weight
    z = torch.randn(weight.shape, generator=noise, dtype=torch.float32).to(weight.device)
    with _restored(weight) as original:
        weight.copy_(original + epsilon * z)
        plus = loss()
        weight.copy_(original - epsilon * z)
        minus = loss()
    return (plus - minus) / (2 * epsilon)


def _loss_from(view: DecoderView, layer: int, state: _BatchState) -> float:
    """Mean cross-entropy of the batch's answer tokens, run from `layer` on."""
    hidden = state.hidden
    for index in range(layer, len(view.layers)):
        hidden = state.calls.through(index, view.layers[index], hidden)
    return mean_answer_loss(view, view.final_norm(hidden), state.batch)


def mean_answer_loss(view: DecoderView, hidden: torch.Tensor, batch: Batch) -> float:
    """Mean cross-entropy of the batch's answer tokens, from final hidden states [B, T, D]."""
    return float(summed_answer_loss(view, hidden, batch)) / num_answer_tokens([batch])


@contextmanager
def at_least_float32(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers of half precision in float32; afterwards back, which loses nothing of what they were.

    Not for use in inference mode: what is made there could not have gradients later.
    """
    halves = [
        (tensor, tensor.dtype)
        for tensor in [*model.parameters(), *model.buffers()]
        if tensor.dtype in (torch.bfloat16, torch.float16)
    ]
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _restored(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weight's present value, put back at the end whatever happens."""
    original = weight.clone()
    try:
        yield original
    finally:
        weight.copy_(original)


def noise_seed(seed: int, step: int) -> int:
    """The seed of the noise of one step: steps count matrices, and batches within each, from 0."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
