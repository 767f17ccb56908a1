"""The space in which densities are chosen: of each sub-layer, the share of its weights that are not zeroed.

Every sub-layer keeps all its units. Nothing becomes cheaper by a density, so that the only limit there is counts the
weights that stay (`nonzero_weights`).
"""

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.anatomy.packed_weights import packed_weights
from pruning.errors import InputError
from pruning.planning.space import Decision, Options, Space

DENSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What a sub-layer's weights may be thinned to. Below a fifth, zeroing leaves nothing of a layer worth having."""


def density_space(anatomy: ModelAnatomy) -> Space:
    """One decision a sub-layer, attention before FFN: one of DENSITIES, or all weights as they are.

    Raises InputError for a model whose weights are not known.
    """
    decisions, dense = [], {}
    for layer in anatomy.layers:
        for sublayer in (Sublayer.ATTENTION, Sublayer.FFN):
            site, units = Site(layer.index, sublayer), layer.units(sublayer)
            if packed_weights(anatomy).get(site):
                options = [*(Option(units, density=density) for density in DENSITIES), Option(units)]
                decisions.append(Decision((site,), (Options.of(options),)))
                dense[site] = units
    if not decisions:
        raise InputError(
            "densities are of weights that are known",
            values="the model's anatomy lists no tensors",
            remedy="Register the checkpoint anew, under another id, with `lop model add`",
        )
    return Space(tuple(decisions), dense)
