"""Whole forward passes of a model whose stored type the device is slow with, computed in float32.

For models that do not fit in memory as float32: all stay in the stored type, and each decoder layer is widened for as
long as it runs. Beside the model there is one layer in float32 at a time, the output head while it runs, and all that
is neither layer nor embedding (vision tower, projector, norms) during the whole block.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.forward.compute_dtype import compute_dtype, widen, widen_output, widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_computed_wide(model: "PreTrainedModel") -> bool:
    """Whether the model's device is to compute it in another dtype than its decoder has."""
    weights = [x for layer in model.get_decoder().layers for x in layer.parameters()]
    return any(compute_dtype(x.dtype, x.device) != x.dtype for x in weights)


@contextmanager
def wide_passes(model: "PreTrainedModel") -> Iterator[None]:
    """In the block, passes of `model` are computed in float32 where the device is slow with what is stored.

    Not for gradients, nor for passes from several threads at once. Costs nothing where there is nothing to widen.
    """
    if not is_computed_wide(model):
        yield
        return
    layers = list(model.get_decoder().layers)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    with ExitStack() as stack:
        stack.enter_context(widened(_rest(model, [*layers, embeddings, head])))
        stack.callback(widen_output(embeddings).remove)
        for module in [*layers, head]:
            stack.enter_context(wide_while_running(module))
        yield


@contextmanager
def wide_while_running(module: nn.Module) -> Iterator[None]:
    """In the block, `module` has its weights in the dtype to compute in while it runs, and as stored otherwise."""
    changed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(_module: nn.Module, _args: Any) -> None:
        changed.extend(widen([*module.parameters(), *module.buffers()]))

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        with torch.inference_mode(False):
            while changed:
                tensor, stored = changed.pop()
                tensor.data = stored

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rest(model: nn.Module, excluded: list[nn.Module]) -> list[torch.Tensor]:
    """The tensors of `model` that are in none of `excluded`."""
    known = {id(x) for module in excluded for x in (*module.parameters(), *module.buffers())}
    return [x for x in (*model.parameters(), *model.buffers()) if id(x) not in known]
