"""The decoder a layer at a time: so that a forward pass can begin at any layer, from hidden states that are known."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning.anatomy.decoder_view import DecoderView
from pruning.errors import UnsupportedModelError


@dataclass(frozen=True)
class VisualFeatures:
    """What is added to the hidden states of image tokens after a layer (Qwen3-VL; DeepStack, arXiv 2406.04334).

    Attributes:
        tokens: [B, T] true for the N image tokens.
        values: [N, D].
    """

    tokens: torch.Tensor
    values: torch.Tensor

    def added_to(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, D] with the features; `hidden` stays as it is."""
        hidden = hidden.clone()
        hidden[self.tokens] += self.values
        return hidden


@dataclass(frozen=True)
class LayerCalls:
    """How the decoder calls its layers on one batch, which does not depend on what the layers compute.

    Attributes:
        hidden: [B, T, D] input of layer 0.
        arguments: one dict a layer: masks and rotary embeddings.
        last_hidden: [B, T, D] what the dense decoder made of it, after its final norm.
        features: of the first layers, as many as have any.
    """

    hidden: torch.Tensor
    arguments: tuple[dict[str, Any], ...]
    last_hidden: torch.Tensor
    features: tuple[VisualFeatures, ...] = ()

    def through(self, index: int, layer: nn.Module | None, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` [B, T, D] after layer `index`, which is `layer`, or skipped (None): what the next one takes."""
        after: torch.Tensor = hidden if layer is None else layer(hidden, **self.arguments[index])
        return self.features[index].added_to(after) if index < len(self.features) else after


@torch.inference_mode()
def record_layer_calls(view: DecoderView, inputs: dict[str, Any]) -> LayerCalls:
    """Run the decoder once on `inputs` (see `decoder_inputs`) and note what each layer was called with.

    Raises UnsupportedModelError if layers do not simply follow one another.
    """
    first: list[torch.Tensor] = []
    arguments: list[dict[str, Any]] = []
    handed_on: list[torch.Tensor] = []
    breaks: list[int] = []
    features = _visual_features(inputs)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        hidden = args[0] if args else rest.pop("hidden_states")
        if not first:
            first.append(hidden)
        elif not _is_same(with_features(handed_on.pop(), len(arguments) - 1), hidden):
            breaks.append(len(arguments))
        arguments.append(rest)

    def with_features(after: Any, index: int) -> Any:
        return features[index].added_to(after) if index < len(features) else after

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        handed_on.append(output)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in view.layers]
    handles += [layer.register_forward_hook(after) for layer in view.layers]
    try:
        last_hidden = view.decoder(**inputs, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    last = len(arguments) - 1
    ends_in_norm = len(handed_on) == 1 and _is_same(view.final_norm(with_features(handed_on[0], last)), last_hidden)
    if breaks or len(arguments) != len(view.layers) or not ends_in_norm:
        raise UnsupportedModelError(
            "each decoder layer must take what the one before returns, and the final norm what the last one returns",
            values=f"{type(view.decoder).__name__}, layers {breaks}" if breaks else type(view.decoder).__name__,
        )
    return LayerCalls(first[0], tuple(arguments), last_hidden, features)


def _visual_features(inputs: dict[str, Any]) -> tuple[VisualFeatures, ...]:
    """What the decoder's inputs say that it adds after its first layers."""
    tokens, values = inputs.get("visual_pos_masks"), inputs.get("deepstack_visual_embeds")
    if tokens is None or values is None:
        return ()
    dtype = inputs["inputs_embeds"].dtype
    return tuple(VisualFeatures(tokens.to(x.device), x.to(dtype)) for x in values)


def _is_same(left: Any, right: Any) -> bool:
    """The same numbers. NaN is NaN here: broken weights are for the evaluator to report."""
    if not isinstance(left, torch.Tensor) or left.shape != right.shape:
        return False
    return left is right or torch.equal(left.nan_to_num(), right.nan_to_num())
