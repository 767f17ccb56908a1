"""Sub-layers that are not run for a while, as if the model had been cut without them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from pruning.anatomy.architecture import Site
from pruning.anatomy.decoder_view import DecoderView


@contextmanager
def skipping(view: DecoderView, sites: Collection[Site]) -> Iterator[None]:
    """In the block the sub-layers `sites` are out of the model (`DecoderView.skip`); afterwards they are back."""
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for site in sites:
            layer = view.layers[site.layer]
            taken += [(layer, name, layer.get_submodule(name)) for name in view.modules_of(site.sublayer)]
            view.skip(site)
        yield
    finally:
        for layer, name, module in taken:
            layer.set_submodule(name, module, strict=True)
