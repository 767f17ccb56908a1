"""The weights that stay where others are zeroed: what a sparsity in the space of densities limits.

Of the projections of all sub-layers, as `lop sparsify` counts them: norms, biases, embeddings and head are not among
them. It is a price as bytes and time are, but of nothing that a device has: no other cost changes by a density.
"""

from functools import lru_cache

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.packed_weights import packed_weights
from pruning.arrays import IntArray
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.prices import Price
from pruning.planning.scope import Scope, num_to_remove, reachable_sparsity
from pruning.planning.space import Options, Space
from pruning.planning.zeroed import num_zeros, zeroed_weights


class NonzeroWeights(Price):
    """Weights of each site that stay, where it keeps all its units."""

    kind = LimitKind.NONZERO_WEIGHTS
    fixed = 0

    def __init__(self, anatomy: ModelAnatomy) -> None:
        self.dense = {Site(x.index, sublayer): x.units(sublayer) for x in anatomy.layers for sublayer in Sublayer}
        weights = packed_weights(anatomy)
        self._sizes = {site: [x.shape[0] * x.shape[1] for x in weights.get(site, ())] for site in self.dense}

    def of(self, site: Site, options: Options) -> IntArray:
        if (options.units != self.dense[site]).any():
            raise InputError(
                "the weights that stay are counted of sub-layers that keep all their units",
                values=f"layer {site.layer}, {site.sublayer}: {options.units.tolist()} of {self.dense[site]} units",
                remedy="Ask for a plan in another space",
            )
        densities = options.density or (None,) * len(options)
        sizes = self._sizes[site]
        kept = [sum(x if d is None else x - num_zeros(x, d) for x in sizes) for d in densities]
        return np.array(kept, dtype=np.int64)


@lru_cache(maxsize=64)
def nonzero_weights(anatomy: ModelAnatomy) -> Price:
    """The price; `total` is all weights of projections in the decoder's layers."""
    return NonzeroWeights(anatomy)


def zeroed_share(anatomy: ModelAnatomy, architecture: Architecture) -> float:
    """Of the weights of all sub-layers, what `architecture` zeroes; raises as `zeroed_weights`."""
    return sum(zeroed_weights(anatomy, architecture).values()) / nonzero_weights(anatomy).total


def nonzero_weight_budget(anatomy: ModelAnatomy, space: Space, sparsity: float, scope: Scope) -> int:
    """Weights that may stay so that `sparsity` of those of all sub-layers is zeroed, exactly but for rounding in each
    weight: what equal densities leave is always allowed.

    Raises:
        InputError: `sparsity` is not in [0, 1), or of another scope than the decoder: zeroed is not removed.
        InfeasibleTargetError: even the least densities of `space` leave more.
    """
    if scope is not Scope.DECODER:
        raise InputError(
            "a sparsity in the space 'density' is the share of the weights of the decoder's sub-layers that are zeroed",
            values=f"scope '{scope}'",
            remedy="Leave the scope out",
        )
    price = nonzero_weights(anatomy)
    exact = price.total - num_to_remove(price.total, sparsity)
    equal = sum(
        x.shape[0] * x.shape[1] - num_zeros(x.shape[0] * x.shape[1], 1.0 - sparsity)
        for weights in packed_weights(anatomy).values()
        for x in weights
    )
    most, least = max(exact, equal), price.cost(space.architecture(space.bottom))
    if least > most:
        nearest = reachable_sparsity(price.total - least, price.total)
        raise InfeasibleTargetError(
            f"sparsity cannot exceed {nearest} in the space 'density'",
            values=repr(sparsity),
            remedy=f"Ask for at most {nearest}, or for another space, which removes instead of zeroing",
            nearest=nearest,
        )
    return most


def nonzero_weight_limits(anatomy: ModelAnatomy, space: Space, most: int) -> Limits:
    """At most `most` weights that are not zero. Raises InfeasibleBudgetError if the least densities leave more."""
    return Limits(space, (nonzero_weights(anatomy).limit(space, most),))
