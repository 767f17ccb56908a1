"""Sub-layers that are not run, nor the norms that belong to them: the residual stream passes them by.

A layer's own code goes on as it is: what it calls in the place of a skipped sub-layer gives a zero, which adds nothing,
and the norms before and after it give back what they take. So it is for every way in which a family orders them.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_view import DecoderView


@contextmanager
def skipping(view: DecoderView, sites: Collection[Site]) -> Iterator[None]:
    """In the block the sub-layers `sites` are not run."""
    changed: list[Any] = []
    try:
        for site in sites:
            layer = view.layers[site.layer]
            is_attention = site.sublayer is Sublayer.ATTENTION
            norms = view.family.attention_norms if is_attention else view.family.ffn_norms
            inside = view.family.attention if is_attention else view.family.ffn
            for name, forward in [(inside, _no_attention if is_attention else _nothing), *((n, _same) for n in norms)]:
                module: Any = layer.get_submodule(name)
                module.forward = forward
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own comes back


def _no_attention(hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    return _nothing(hidden_states), None


def _nothing(hidden_states: torch.Tensor) -> torch.Tensor:
    """A zero that can be added to hidden states of any shape."""
    return hidden_states.new_zeros(())


def _same(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states
