"""Batches through a vision tower, one layer at a time: all batches through one, then the next.

The tower runs once as it is, which tells what its layers are called with besides hidden states: positions, masks,
bounds of windows. From then on only layers run, on the hidden states that come out of the one before.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.cutting.rewriting.blocks import vision_layers
from pruning.data.batches import Batch
from pruning.errors import InputError, UnsupportedModelError
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.forward.input_products import HELD_OUT_EVERY
from pruning.forward.tensor_store import TensorStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Call:
    """One call of the tower: the key of the hidden states, and each layer's other arguments.

    Arguments that all layers share are one object, so they take memory once.
    """

    rows: int
    held_out: bool
    hidden: int
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class VisionPass:
    """Pictures on their way through a vision tower.

    Attributes:
        layers: of the tower, in order.

    Raises:
        InputError: there are no batches, no tower, or no pictures.
        UnsupportedModelError: layers do not simply follow one another.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: "PreTrainedModel",
        batches: Iterable[Batch],
        store: TensorStore,
        *,
        on_batch: Callable[[int], None],
    ) -> None:
        found = vision_layers(model)
        if found is None:
            raise InputError("only a model with a vision tower has vision layers", remedy="Choose --modules language")
        self.layers = found[1]
        self._store, self._on_batch, self._device = store, on_batch, model.device
        self._calls: list[_Call] = []
        self._last: torch.Tensor | None = None
        self._number = self._rows = 0
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                hook = layer.register_forward_pre_hook(partial(self._on_call, index), with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(layer.register_forward_hook(self._on_output).remove)
            for number, batch in enumerate(batches):
                rows = len(batch.inputs["attention_mask"])
                self._number, self._rows = number, rows
                decoder_inputs(model, [batch])
                on_batch(rows)
        self._last = None
        if not self._calls:
            raise InputError(
                "vision layers need pictures to be measured on",
                values="no conversation has one",
                remedy="Use conversations with pictures, or --modules language",
            )

    @torch.inference_mode()
    def through(
        self,
        index: int,
        layer: nn.Module,
        start_batch: Callable[[torch.Tensor | None, bool], None] | None = None,
        *,
        advances: bool = True,
    ) -> None:
        """Take every picture through layer `index`, which is `layer`. Layers come in order.

        `start_batch(None, held_out)` is told of each call before it is computed. Where the pass does not advance,
        pictures stay before the layer.
        """
        for call in self._calls:
            if start_batch is not None:
                start_batch(None, call.held_out)
            arguments, keywords = call.arguments[index]
            output = layer(self._store.get(call.hidden, self._device), *arguments, **keywords)
            if advances:
                self._store.replace(call.hidden, _hidden_of(output))
            self._on_batch(call.rows)

    def _on_call(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        hidden = args[0] if args else rest.pop("hidden_states")
        if index == 0:
            held_out = self._number % HELD_OUT_EVERY == 1
            self._calls.append(_Call(self._rows, held_out, self._store.put(hidden)))
            self._rows = 0  # of several calls in one batch, one counts its rows
        elif self._last is None or not torch.equal(hidden, self._last):
            raise UnsupportedModelError(
                "each vision layer must take what the one before returned",
                values=f"{type(layer).__name__} {index}",
                remedy="Choose --modules language",
            )
        self._calls[-1].arguments.append((tuple(args[1:]), rest))

    def _on_output(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        self._last = _hidden_of(output)


def _hidden_of(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return hidden
