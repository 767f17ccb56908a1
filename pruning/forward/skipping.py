"""Sub-layers that are not run for a while, nor the norms that belong to them.

The modules stay in the model, since others look at them meanwhile (packed rows read the config of each attention); what
they compute is for that while what stands in for them where a sub-layer is skipped for good.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pruning.anatomy.architecture import Site
from pruning.anatomy.decoder_view import DecoderView


@contextmanager
def skipping(view: DecoderView, sites: Collection[Site]) -> Iterator[None]:
    """In the block the sub-layers `sites` are not run."""
    changed: list[Any] = []
    try:
        for site in sites:
            for name, stand_in in view.stand_ins(site).items():
                module: Any = view.layers[site.layer].get_submodule(name)
                module.forward = stand_in.forward
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own comes back
