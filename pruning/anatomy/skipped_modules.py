"""What stands in a model for a sub-layer that is skipped: nothing is computed, and nothing is cached.

A decoder layer adds what its attention and its FFN return to the residual stream. Here both return a zero without
dimensions, so the layer's own code stays transformers', and adds nothing.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import Cache


class SkippedFfn(nn.Module):
    """In the place of an FFN."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zero, for any hidden states."""
        return hidden_states.new_zeros(())


class SkippedAttention(nn.Module):
    """In the place of the attention of layer `layer_idx`."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *_args: Any, past_key_values: "Cache | None" = None, **_kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """Zero, for any hidden states; no attention weights."""
        if past_key_values is not None:
            _leave_out(past_key_values, self.layer_idx)
        return hidden_states.new_zeros(()), None


def _leave_out(cache: "Cache", layer_idx: int) -> None:
    """Make the cache know that this layer stores nothing.

    transformers takes the number of cached tokens, which positions and masks follow from, from the first layer of a
    cache that is no `DummyLayer`. A layer of any other kind that is never written to would say that there are none.
    """
    from transformers.cache_utils import DummyLayer

    if layer_idx == len(cache.layers):  # a cache that was made without a config grows as layers run
        cache.layers.append(DummyLayer())
    elif not isinstance(cache.layers[layer_idx], DummyLayer):
        cache.layers[layer_idx] = DummyLayer()
