"""What a search found, in the options that a request allows, filled up to its limits.

Only what keeps more is added, so that what was measured stays what is to be expected.
"""

from dataclasses import dataclass

import numpy as np

from pruning.allocators.uniform import even_worth, worth_of_costs
from pruning.anatomy.architecture import Architecture
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.planning.limits import Limits
from pruning.planning.space import Space
from service.finished_searches import FoundConfiguration

_SKIPPED_LAST = 1e-6
"""What filling up a sub-layer that was found skipped is worth of the usual: others grow first."""


@dataclass(frozen=True, slots=True)
class Filled:
    """Attributes:
    architecture: within the limits.
    changed: it is not what was found.
    keeps_all: it keeps all that was found, and perhaps more.
    """

    architecture: Architecture
    changed: bool
    keeps_all: bool


def filled_up(found: FoundConfiguration, limits: Limits) -> Filled:
    """`found`, as much of it as the space of `limits` has, and what else fits; `found` has to fit."""
    space, start = limits.space, start_of(found, limits.space)
    if space.has_bits:
        return _with_bits(found, limits, start)
    if space.has_density:
        choice = limits.fit(start, worth_of_costs(limits))
        then, now = ([float(row[k]) for row, k in zip(space.amounts, own, strict=True)] for own in (start, choice))
    else:
        units = _units(found, space)
        choice = limits.fit(start, _skipped_last(even_worth(limits), np.array(units)))
        then, now = [*units], [*space.units_of(choice)]
    keeps_all = all(a >= b for a, b in zip(now, then, strict=True))
    return Filled(space.architecture(choice), now != then, keeps_all)


def _with_bits(found: FoundConfiguration, limits: Limits, start: IntArray) -> Filled:
    """Among the options that keep no less of anything, and cost no less: what costs more may well keep less there, and
    in a file of few bits what is as it is may cost less than 8 bits."""
    space, table = limits.space, limits.table.excess
    above = []
    for n, (decision, k) in enumerate(zip(space.decisions, start, strict=True)):
        kept, costs = decision.options[0].extents, table[:, n, : decision.num_options]
        above.append(np.flatnonzero((kept >= kept[k]).all(axis=1) & (costs >= costs[:, [k]]).all(axis=0)))
    more = limits.among(above)
    worth = _skipped_last(worth_of_costs(more), np.array(space.units_of(start)))
    least = more.space.not_above(space.architecture(start))
    architecture = more.space.architecture(more.fit(least, worth))
    then, now = (space.extents_of(x) for x in (found.architecture, architecture))
    return Filled(architecture, bool((now != then).any()), bool((now >= then).all()))


def start_of(found: FoundConfiguration, space: Space) -> IntArray:
    """[N] the options of `space` that keep what was found, or as much of it as they can."""
    if space.has_bits:
        return space.not_above(found.architecture)
    if not space.has_density:
        return space.at_most(_units(found, space))
    choice = space.choice_of(found.architecture)
    if choice is None:
        raise InputError(
            "a search of densities found densities that plans may have",
            values=f"search {found.search_id}",
            remedy="Search again with this version",
        )
    return np.array(choice, dtype=np.int64)


def _skipped_last(worth: FloatArray, units: IntArray) -> FloatArray:
    """`worth` [N, K], much less where none of the `units` [N] was kept."""
    return np.where((units == 0)[:, None], worth * _SKIPPED_LAST, worth)


def _units(found: FoundConfiguration, space: Space) -> list[int]:
    """[N] what is kept of each decision's first site: of whole layers as much as of the other."""
    options = found.architecture.options
    first = [decision.sites[0] for decision in space.decisions]
    return [options[site].units if site in options else space.dense[site] for site in first]
