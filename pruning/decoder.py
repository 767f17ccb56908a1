"""The decoder inside a loaded model: its layers, and its inputs as the multimodal front end prepares them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.batches import Batch
from pruning.errors import CheckpointError, LopError
from pruning.families import Family, family_of
from pruning.processor import named
from pruning.reasons import reason_of

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
        family: its row of the family table.
        softcap: bound of the logits, c tanh(x / c) (Gemma 2); None: they are the head's.
    """

    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    final_norm: nn.Module
    head: nn.Module
    family: Family
    softcap: float | None = None

    def projection(self, layer: int, name: str) -> nn.Linear:
        """The linear layer `name`, as the family's row calls it, of a decoder layer."""
        module = self.layers[layer].get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module

    def out_projection(self, layer: int) -> nn.Linear:
        """The linear layer whose input columns are the FFN channels."""
        return self.projection(layer, self.family.ffn_out)

    def in_projections(self, layer: int) -> list[nn.Linear]:
        """The linear layers whose output rows are the FFN channels."""
        return [self.projection(layer, name) for name in self.family.ffn_in]

    def attention_out(self, layer: int) -> nn.Linear:
        """The linear layer whose input columns are the outputs of the query heads."""
        return self.projection(layer, self.family.attention_out)

    @property
    def is_causal(self) -> bool:
        """Whether attention without a mask is causal: not where a prefix sees all of itself (PaliGemma)."""
        attentions = [layer.get_submodule(self.family.attention) for layer in self.layers]
        return all(getattr(attention, "is_causal", True) for attention in attentions)

    def ffn_width(self, layer: int) -> int:
        """The FFN channels of `layer` now."""
        return self.out_projection(layer).in_features

    def channel_rows(self, layer: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Views [W, ...] of `tensors` [rows, ...], rows of in-projections: several of each that is fused."""
        width = self.ffn_width(layer)
        return [part for tensor in tensors for part in torch.split(tensor, width)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of final hidden states [..., D], in float32."""
        logits: torch.Tensor = self.head(hidden).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def decoder_view(model: "PreTrainedModel") -> DecoderView:
    """Find decoder and head; raises UnsupportedModelError for a family outside the table."""
    text = model.config.get_text_config(decoder=True)
    family = family_of(text)
    decoder = model.get_decoder()
    return DecoderView(
        decoder,
        tuple(decoder.layers),
        getattr(decoder, family.final_norm),
        model.get_output_embeddings(),
        family,
        getattr(text, "final_logit_softcapping", None),
    )


class _CaptureError(Exception):
    """Unwinds the forward pass once the decoder's inputs are known."""


@torch.inference_mode()
def decoder_inputs(model: "PreTrainedModel", batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """The keyword arguments with which the model calls its decoder, one dict a batch.

    Runs the vision tower and the projector once: neither is pruned, so every configuration shares their output
    (inputs_embeds [B, T, D], attention_mask [B, T], position_ids where the family computes them).

    Raises CheckpointError if the model does not take what its processor made: names the batch's conversations.
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
            with suppress(_CaptureError), taking(batch.ids):
                model(**{k: v.to(model.device) for k, v in batch.inputs.items()}, use_cache=False)
    finally:
        handle.remove()
    return captured


@contextmanager
def taking(ids: Sequence[str], *, files: str = "tokenizer_config.json") -> Iterator[None]:
    """What a model raises on inputs that its own processor made of conversations `ids` becomes a CheckpointError.

    `files` are what it may be due to besides the processor's settings.
    """
    try:
        yield
    except (LopError, MemoryError, torch.OutOfMemoryError, _CaptureError):
        raise
    except Exception as error:
        raise CheckpointError(
            "the model must take what its processor makes of conversations",
            values=f"{named(ids)}: {reason_of(error)}",
            remedy="Processor and model must be of one checkpoint: compare processor_config.json, "
            f"preprocessor_config.json and {files} with config.json (patch_size, image tokens), or copy them again",
        ) from error
