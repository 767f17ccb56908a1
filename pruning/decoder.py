"""The decoder inside a loaded model: its layers, and its inputs as the multimodal front end prepares them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.batches import Batch
from pruning.families import FfnFamily, ffn_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DecoderView:
    """The parts of a model that pruning touches.

    Attributes:
        decoder: the language model's trunk (embeddings in, final hidden states out).
        layers: its layers, in order.
        final_norm: what the trunk does after its last layer.
        head: the output head.
        ffns: one FFN module per layer.
        family: its row of the family table.
    """

    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    final_norm: nn.Module
    head: nn.Module
    ffns: tuple[nn.Module, ...]
    family: FfnFamily

    def out_projection(self, layer: int) -> nn.Linear:
        """The linear layer whose input columns are the FFN channels."""
        module = getattr(self.ffns[layer], self.family.out)
        assert isinstance(module, nn.Linear)
        return module

    def in_projections(self, layer: int) -> list[nn.Linear]:
        """The linear layers whose output rows are the FFN channels."""
        return [getattr(self.ffns[layer], name) for name in self.family.into]


def decoder_view(model: "PreTrainedModel") -> DecoderView:
    """Find decoder and head; raises UnsupportedModelError for a family outside the table."""
    family = ffn_family(model.config.get_text_config(decoder=True).model_type)
    decoder = model.get_decoder()
    layers = tuple(decoder.layers)
    ffns = tuple(getattr(layer, family.module) for layer in layers)
    return DecoderView(decoder, layers, decoder.norm, model.get_output_embeddings(), ffns, family)


class _CaptureError(Exception):
    """Unwinds the forward pass once the decoder's inputs are known."""


@torch.inference_mode()
def decoder_inputs(model: "PreTrainedModel", batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """The keyword arguments with which the model calls its decoder, one dict a batch.

    Runs the vision tower and the projector once: neither is pruned, so every configuration shares their output
    (inputs_embeds [B, T, D], attention_mask [B, T], position_ids where the family computes them).
    """
    view = decoder_view(model)
    captured: list[dict[str, Any]] = []

    def capture(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(
            {k: v for k, v in kwargs.items() if k not in ("use_cache", "past_key_values", "cache_position")}
        )
        raise _CaptureError

    handle = view.decoder.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        for batch in batches:
            try:
                model(**{k: v.to(model.device) for k, v in batch.inputs.items()}, use_cache=False)
            except _CaptureError:
                continue
    finally:
        handle.remove()
    return captured
