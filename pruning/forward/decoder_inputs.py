"""The inputs of a model's decoder, as its multimodal front end prepares them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.processor import named
from pruning.data.batches import Batch
from pruning.errors import CheckpointError, LopError
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def outside_inference(inputs: Any) -> Any:
    """Copies of tensors that were made in inference mode: autograd refuses to save those for the backward pass."""
    match inputs:
        case torch.Tensor():
            return inputs.clone()
        case dict():
            return {name: outside_inference(x) for name, x in inputs.items()}
        case list():
            return [outside_inference(x) for x in inputs]
        case tuple():
            return tuple(outside_inference(x) for x in inputs)
    return inputs


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
