"""How many weights a plan's densities set to zero: exactly those that `lop sparsify --plan` writes.

Zeroed is not removed: no other cost changes by it. Of each weight of a sub-layer the same share becomes zero, so that
the numbers are known before any weight is read.
"""

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.packed_weights import packed_weights
from pruning.errors import InputError
from pruning.planning.scope import Scope, scope_parameters


def num_zeros(count: int, density: float) -> int:
    """How many of `count` weights become zero where the share `density` of them stays."""
    return round(count * (1.0 - density))


def zeroed_weights(anatomy: ModelAnatomy, architecture: Architecture) -> dict[Site, int]:
    """Of each site that has a density, the weights that become zero.

    Raises InputError for a density of a site that is cut or has fewer bits too, or of a model whose weights are not
    known.
    """
    found = {}
    for site, option in architecture.items:
        if option.density is None:
            continue
        weights = packed_weights(anatomy).get(site, ())
        if not weights or option != Option(anatomy.layers[site.layer].units(site.sublayer), density=option.density):
            raise InputError(
                "a density is of a sub-layer that keeps all its units and the bits of its weights",
                values=f"layer {site.layer}, {site.sublayer}: {option}",
                remedy="Leave out the density, or the units and bits beside it",
            )
        found[site] = sum(num_zeros(x.shape[0] * x.shape[1], option.density) for x in weights)
    return found


def zeroed_shares(anatomy: ModelAnatomy, architecture: Architecture) -> dict[Scope, float]:
    """Fraction of the parameters that become zero, per scope; empty if no site has a density. Raises as
    `zeroed_weights`."""
    zeros = zeroed_weights(anatomy, architecture)
    if not zeros:
        return {}
    of_ffn = sum(count for site, count in zeros.items() if site.sublayer is Sublayer.FFN)
    return {
        scope: (of_ffn if scope is Scope.FFN else sum(zeros.values())) / scope_parameters(anatomy, scope)
        for scope in Scope
    }
