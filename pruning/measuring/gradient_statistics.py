"""Statistics of one backward pass: LLM-Pruner's first-order importance of coupled weights.

Removing a weight w changes the loss by about w dL/dw (arXiv 2305.11627). An FFN channel is one group of
coupled weights: its gate row, its up row and its down column; its importance is the sum of |w dL/dw| over them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from pruning.anatomy.decoder_view import decoder_view
from pruning.arrays import FloatArray
from pruning.data.batches import Batch
from pruning.forward.decoder_inputs import decoder_inputs, outside_inference
from pruning.measuring.answer_loss import num_answer_tokens, summed_answer_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_gradients(
    model: "PreTrainedModel", batches: Sequence[Batch], *, on_batch: Callable[[int, int], None] | None = None
) -> dict[str, FloatArray]:
    """The arrays of `StatisticsKind.GRADIENTS`, of the mean cross-entropy over all answer tokens of `batches`.

    Gradients of the batches add up, so how conversations are batched does not matter. Memory: one gradient for each
    FFN weight, and one batch's activations. Nothing else gets a gradient, and none is left behind.
    """
    view = decoder_view(model)
    layers = range(len(view.layers))
    weights = [[x.weight for x in [*view.in_projections(i), view.out_projection(i)]] for i in layers]
    tokens = num_answer_tokens(batches)
    with _gradients_only_of(model, [weight for row in weights for weight in row]):
        for done, batch in enumerate(batches, start=1):
            (captured,) = decoder_inputs(model, [batch])
            hidden = view.decoder(**outside_inference(captured), use_cache=False).last_hidden_state
            torch.autograd.backward(summed_answer_loss(view, hidden, batch) / tokens)
            if on_batch is not None:
                on_batch(done, len(batches))
        return {f"layers.{i}.ffn_taylor": _channel_importance(row).numpy() for i, row in enumerate(weights)}


@torch.no_grad()
def _channel_importance(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Summed |w dL/dw| [W] of one FFN, given as projections into it [W, D] and, last, the one out of it [D, W].

    Fused projections into it are [2 W, D]: a channel has a row in either half.
    """
    *into, out = weights
    importance = _taylor(out).sum(dim=0, dtype=torch.float64)
    for weight in into:
        for part in torch.split(_taylor(weight), len(importance)):
            importance += part.sum(dim=1, dtype=torch.float64)
    return importance.cpu()


def _taylor(weight: torch.Tensor) -> torch.Tensor:
    assert weight.grad is not None
    return (weight.float() * weight.grad.float()).abs()


@contextmanager
def _gradients_only_of(model: nn.Module, wanted: Sequence[torch.Tensor]) -> Iterator[None]:
    """Gradients of nothing but `wanted`, from zero; afterwards every parameter is as it was, its gradient included."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for weight in wanted:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
