"""How much the model needs its feed-forward channels: the figure that makes pruning it worth planning.

Channels are ordered once by importance on calibration data; a width is then a prefix of that order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reference.evaluate import EvaluationSet
from reference.forward import VisionLanguageModel, answer_logits, decoder_of


def _mlps(model: VisionLanguageModel) -> list[Any]:
    """The L feed-forward blocks (which come without types)."""
    return [layer.mlp for layer in model.model.language_model.layers]


@torch.no_grad()
def channel_importance(model: VisionLanguageModel, data: EvaluationSet) -> list[Tensor]:
    """Per layer, norm of a channel's down_proj column times the RMS of its activation: L tensors float32 [F]."""
    squares = [torch.zeros(mlp.down_proj.in_features) for mlp in _mlps(model)]

    def record(index: int) -> RemovableHandle:
        def hook(_module: nn.Module, inputs: tuple[Tensor]) -> None:
            squares[index] += inputs[0].square().sum(dim=(0, 1))

        handle: RemovableHandle = _mlps(model)[index].down_proj.register_forward_pre_hook(hook)
        return handle

    handles = [record(index) for index in range(len(squares))]
    for batch in data.batches:
        answer_logits(model, decoder_of(model), batch)
    for handle in handles:
        handle.remove()
    return [square.sqrt() * mlp.down_proj.weight.norm(dim=0) for square, mlp in zip(squares, _mlps(model), strict=True)]


@contextmanager
def widths(
    model: VisionLanguageModel, importance: Sequence[Tensor], kept: Sequence[int]
) -> Iterator[VisionLanguageModel]:
    """The model with only the `kept[l]` most important channels in layer l, restored on leaving."""
    saved = []
    for mlp, score, count in zip(_mlps(model), importance, kept, strict=True):
        index = score.argsort(descending=True, stable=True)[:count]
        saved.append((mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight))
        gate, up, down = saved[-1]
        mlp.gate_proj.weight = nn.Parameter(gate[index], requires_grad=False)
        mlp.up_proj.weight = nn.Parameter(up[index], requires_grad=False)
        mlp.down_proj.weight = nn.Parameter(down[:, index], requires_grad=False)
    try:
        yield model
    finally:
        for mlp, (gate, up, down) in zip(_mlps(model), saved, strict=True):
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight = gate, up, down
