"""Which hidden states of a cut model answer to which of its dense model, where whole layers are skipped.

A layer that is skipped hands on what it was given. In a run of such layers the state before the run is also the state
after it, and what was to become of it there is what the last layer that is kept has to give: so it is compared with the
dense model's state after the run.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skipped_layers(model: "PreTrainedModel") -> set[int]:
    """Layers of a cut model of which neither attention nor FFN is left."""
    view = decoder_view(model)
    return {i for i in range(len(view.layers)) if all(view.is_skipped(Site(i, half)) for half in Sublayer)}


def matched_layers(chosen: Sequence[int], num_layers: int, skipped: Collection[int]) -> tuple[int, ...]:
    """After which layers hidden states are compared, in order, where those after `chosen` were asked for.

    Args:
        chosen: layers, from 0.
        num_layers: L, as many as the dense model has.
        skipped: layers of which neither attention nor FFN is left.

    Raises InputError for a layer that there is not, or if nothing that could be trained stands before any of them.
    """
    if beyond := [layer for layer in chosen if not 0 <= layer < num_layers]:
        raise InputError(f"this model's layers are numbered 0..{num_layers - 1}", values=f"layer {beyond[0]}")
    ends = set()
    for layer in chosen:
        end = layer
        while end + 1 < num_layers and end + 1 in skipped:
            end += 1
        if any(kept not in skipped for kept in range(end + 1)):
            ends.add(end)
    if chosen and not ends:
        raise InputError(
            "a layer whose output is compared must have one before it that is kept",
            values=f"layers {', '.join(map(str, chosen))}, all up to them are skipped",
            remedy="Choose later ones, or leave them out: then the last hidden state is compared",
        )
    return tuple(sorted(ends))
