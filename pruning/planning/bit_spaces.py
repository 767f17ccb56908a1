"""Spaces in which the bits of weights are chosen: of each sub-layer, alone or together with its units.

An option says both, since bytes are a product of the two. Where a sub-layer may not be skipped, its cheapest option
must be cheapest under every limit: so it is the fewest units that may be stored in the fewest bits, and options of
fewer units than that are left out.
"""

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.anatomy.packed_weights import FEWER_BITS, come_in_groups, packed_weights
from pruning.arrays import IntArray
from pruning.errors import InputError
from pruning.planning.space import Decision, Options, Space


def bit_space(anatomy: ModelAnatomy, *, shards: int = 1, least_options: int = 2) -> Space:
    """One decision a sub-layer whose weights come in whole groups, attention before FFN: in fewer bits, or as they are.

    `shards`: devices that divide inputs among them. With 1 as `least_options`, sub-layers that can only stay as they
    are have a decision, too. Raises InputError where nothing is left to decide.
    """
    decisions, dense = [], {}
    for layer in anatomy.layers:
        for sublayer in (Sublayer.ATTENTION, Sublayer.FFN):
            site, units = Site(layer.index, sublayer), layer.units(sublayer)
            options = _options(anatomy, site, np.array([units], dtype=np.int64), units, shards)
            if len(options) >= least_options:
                decisions.append(Decision((site,), (options,)))
                dense[site] = units
    space = Space(tuple(decisions), dense)
    _check(space)
    return space


def with_bits(anatomy: ModelAnatomy, space: Space, *, shards: int = 1) -> Space:
    """`space`, whose decisions are of one site each, with its options in fewer bits as well.

    Raises InputError where no weight comes in whole groups.
    """
    decisions = []
    for decision, units in zip(space.decisions, space.units, strict=True):
        (site,) = decision.sites
        decisions.append(Decision((site,), (_options(anatomy, site, units, space.dense[site], shards),)))
    found = Space(tuple(decisions), space.dense)
    _check(found)
    return found


def with_all_units(space: Space) -> list[IntArray]:
    """[N] the options of each decision that keep all units: what bits alone can do."""
    return [np.flatnonzero(row == row.max()) for row in space.units]


def in_same_bits(space: Space, bits: int | None) -> list[IntArray]:
    """[N] the options of each decision in `bits`, or without units; all of them, where none with units is in those.

    None: as in the dense model, so that units alone are decided.
    """
    found = []
    for decision in space.decisions:
        options = decision.options[0]
        own = np.array([x.bits == bits for x in options])
        skipped = options.units == 0
        found.append(np.flatnonzero(own | skipped if (own & ~skipped).any() else np.ones_like(own)))
    return found


def _options(anatomy: ModelAnatomy, site: Site, units: IntArray, dense: int, shards: int) -> Options:
    """Ascending in units x bits, and then in units; the last one is as it is in the dense model, where that is one."""
    grouped = come_in_groups(packed_weights(anatomy).get(site, ()), units, shards=shards)
    least = 0 if not grouped.any() or not units.min() else int(units[grouped].min())
    options = [Option(int(count)) for count in units if count >= least]
    options += [Option(int(count), bits) for count in units[grouped] for bits in FEWER_BITS]
    return Options.of(
        sorted(options, key=lambda x: (x.units == dense and x.bits is None, x.units * (x.bits or 16), x.units))
    )


def _check(space: Space) -> None:
    if not space.has_bits:
        raise InputError(
            "fewer bits need weights whose inputs come in whole groups of 32",
            values="no sub-layer of this model has them",
            remedy="Search in another space",
        )
