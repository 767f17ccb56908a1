"""One forward pass of many batches through the decoder, layer by layer: all batches through one layer, then the next.

The decoder itself calls each layer, with one real layer in place and slots for all others, so masks, rotary embeddings,
windows, and what a family adds between layers (Qwen3-VL's deep visual features) are made by its own code. What is
computed before a layer is thrown away: the layer is given the hidden states that are known instead.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning.data.batches import Batch
from pruning.errors import InputError, UnsupportedModelError
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.forward.free_memory import return_free_memory
from pruning.forward.layer_source import LayerSource
from pruning.forward.tensor_store import TensorStore, get_all, put_all


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A batch at the door of a layer; everything but the mask is in the store.

    Attributes:
        mask: [B, T], 1 for real tokens.
        hidden: key of the hidden states [B, T, D].
        inputs: what the decoder is called with besides.
    """

    mask: torch.Tensor
    hidden: int
    inputs: dict[str, Any]


class _ReachedError(Exception):
    """Unwinds the decoder once the next layer's input is known."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class DecoderPass:
    """Batches on their way through a decoder.

    The front end (embeddings, vision tower, projector) sees one batch at a time; then it is released. From there on,
    memory holds one layer, the activations of one batch, and what `store` holds.

    Args:
        source: of the layers.
        batches: taken one at a time, so they may be made while they are taken.
        store: where hidden states wait.
        on_batch: told how many rows it had after each batch.

    Raises InputError if there are no batches.
    """

    @torch.inference_mode()
    def __init__(
        self, source: LayerSource, batches: Iterable[Batch], store: TensorStore, *, on_batch: Callable[[int], None]
    ) -> None:
        self._source, self._store, self._on_batch = source, store, on_batch
        self._device = source.model.device
        decoder = source.model.get_decoder()
        self._waiting: list[_Waiting] = []
        for batch in batches:
            (inputs,) = decoder_inputs(source.model, [batch])
            hidden = self._run_to(decoder, 0, inputs)
            # The decoder needs no embeddings any more: of these, it looks at shape and dtype only.
            rest = {name: x for name, x in inputs.items() if name not in ("input_ids", "inputs_embeds")}
            mask = batch.inputs["attention_mask"].to("cpu", torch.float32)
            self._waiting.append(_Waiting(mask, store.put(hidden), put_all(store, rest)))
            on_batch(len(mask))
        if not self._waiting:
            raise InputError("statistics need calibration data", values="no batches")
        self._decoder = source.release_front_end()

    @torch.inference_mode()
    def through(
        self,
        index: int,
        layer: nn.Module,
        start_batch: Callable[[torch.Tensor], None] | None = None,
        *,
        advances: bool = True,
    ) -> None:
        """Take every batch through layer `index`, which is `layer`. Layers come in order, each once.

        `start_batch(mask)` is told the mask [B, T] of each batch before it is computed; hooks of `layer` see the rest.
        Where the pass does not advance, batches stay before the layer, to be taken through it, or another in its
        place, once more.

        Raises UnsupportedModelError if the layer's output is no hidden state.
        """
        stays = not advances or index + 1 == len(self._source.slots)
        for waiting in self._waiting:
            if start_batch is not None:
                start_batch(waiting.mask.to(self._device))
            hidden = self._store.get(waiting.hidden, self._device)
            inputs = get_all(self._store, waiting.inputs, self._device)
            if stays:
                self._run(index, layer, hidden, inputs)
            else:
                self._store.replace(waiting.hidden, self._run(index, layer, hidden, inputs))
            self._on_batch(len(waiting.mask))
        return_free_memory()  # before what follows a pass, such as a solve, takes more

    def _run(self, index: int, layer: nn.Module, hidden: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """What the layer after `index` is called with [B, T, D]; of the last layer, its output."""

        def call(_: torch.Tensor, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
            output = layer(hidden, *arguments, **keywords)
            if not isinstance(output, torch.Tensor) or output.shape != hidden.shape:
                raise UnsupportedModelError(
                    "a decoder layer must return the hidden states, and nothing else", values=type(layer).__name__
                )
            if index + 1 == len(self._source.slots):
                raise _ReachedError(output)
            return output

        self._source.slots[index].on_call = call
        try:
            return self._run_to(self._decoder, index + 1, {**inputs, "inputs_embeds": hidden})
        finally:
            self._source.slots[index].on_call = None

    def _run_to(self, decoder: nn.Module, index: int, inputs: dict[str, Any]) -> torch.Tensor:
        """The hidden states [B, T, D] that layer `index` is called with; the decoder is left there."""

        def call(hidden: torch.Tensor, _arguments: tuple[Any, ...], _keywords: dict[str, Any]) -> torch.Tensor:
            raise _ReachedError(hidden)

        slot = self._source.slots[index] if index < len(self._source.slots) else None
        if slot is not None:
            slot.on_call = call
        try:
            decoder(**inputs, use_cache=False)
        except _ReachedError as reached:
            return reached.hidden
        finally:
            if slot is not None:
                slot.on_call = None
        raise UnsupportedModelError(
            "a decoder must call each of its layers in order", values=f"{type(decoder).__name__}, layer {index}"
        )
