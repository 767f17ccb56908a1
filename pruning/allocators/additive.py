"""The choice of the least summed losses of single decisions, under one limit or several, in any space."""

from collections.abc import Sequence

import numpy as np

from pruning.allocators.additive_dp import cost_to_go
from pruning.anatomy.architecture import Architecture
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.planning.cost_table import CostTable
from pruning.planning.fit import fit
from pruning.planning.limits import Limits
from pruning.planning.solver import least_within
from pruning.planning.space import Options, Space


def additive_architecture(levels: Space, loss: FloatArray, limits: Limits) -> Architecture:
    """Allowed options that meet `limits`, of which none can grow by one more step.

    Under one limit: the optimum on `levels`, filled up. Under several: the best that is found of all allowed options,
    whose losses are `interpolated_losses`, beginning with the optimum under the limit that takes most.

    Where bits or densities may change, options are no ladder of units: the optimum is of all allowed options then.

    Losses add up: what two decisions lose together counts as the sum of what each loses alone. Where both halves of a
    layer are skipped, or neighbours are, they lose more than that, and this program does not know it.

    Args:
        levels: the coarse space that was measured.
        loss: [N, K] of each level while all other decisions are dense.
        limits: over a fine space of the same decisions; no allowed option is below the decision's lowest level.

    Raises:
        InputError: `loss` is not [N, K] finite numbers, or the limits are of a space with other decisions.
    """
    space = limits.space
    if not space.is_of_units:
        return _among_all_options(levels, loss, limits)
    units, losses_of_levels = _placed(levels, loss, space)
    allowed = [
        np.maximum(np.searchsorted(row, wanted, side="right") - 1, 0)
        for row, wanted in zip(space.units, units, strict=True)
    ]
    chosen = _optimum(losses_of_levels, allowed, limits)
    start = np.array([options[k] for options, k in zip(allowed, chosen, strict=True)])
    # Nothing is exceeded, so units are only added: they gain the slope of the losses to the next level up.
    worth = np.zeros(limits.table.exists.shape)
    for row, kept, of_level, losses, k in zip(worth, space.units, units, losses_of_levels, chosen, strict=True):
        if k < len(of_level) - 1:
            row[: len(kept)] = kept * float(losses[k] - losses[k + 1]) / (of_level[k + 1] - of_level[k])
    alone = Limits(space, (limits.binding,)).fit(start, worth)
    if len(limits.limits) == 1:
        return space.architecture(alone)
    losses = interpolated_losses(levels, loss, space)
    longest = max(len(options) for options in allowed)
    marks = np.stack([np.pad(options, (0, longest - len(options)), mode="edge") for options in allowed])
    found = least_within(limits, losses, limits.fit(start, -losses), marks)
    # A local optimum, which the one of the binding limit, filled up and brought within the others, may beat.
    choices = (found, limits.fit(alone, -losses))
    return space.architecture(min(choices, key=lambda choice: losses[np.arange(len(choice)), choice].sum()))


def _among_all_options(levels: Space, loss: FloatArray, limits: Limits) -> Architecture:
    limits = _in_scanned_bits(levels, limits)
    losses = interpolated_losses(levels, loss, limits.space)
    limits, losses = _worthwhile(limits, losses)
    binding = limits.binding
    table, floors = CostTable.of_rows([binding.costs])
    spare = min(binding.most, binding.dense) - binding.fixed - int(floors.sum())
    best = limits.fit(cost_to_go(table, losses, spare).best_choice(spare), -losses)
    # Bytes have small common divisors: the program's states are coarse, and there may be several limits.
    return limits.space.architecture(least_within(limits, losses, best, best[:, None]))


def _in_scanned_bits(levels: Space, limits: Limits) -> Limits:
    """Without options in bits that none of the decision's `levels` has: of a narrow layer some widths come in groups,
    and perhaps none of those that were scanned.

    Raises InfeasibleBudgetError if what is left exceeds a limit.
    """
    space, places = limits.space, limits.space.places_of(levels)
    if places is None:
        return limits  # which is refused later
    kept = [np.arange(count) for count in space.counts]
    for n, decision in zip(places, levels.decisions, strict=True):
        scanned = {x.bits for x in decision.options[0] if x.units}
        kept[n] = np.flatnonzero([not x.units or x.bits in scanned for x in space.decisions[n].options[0]])
    return limits.among(kept)


def _worthwhile(limits: Limits, losses: FloatArray) -> tuple[Limits, FloatArray]:
    """Without options that cost no less than another of their decision under any limit, and lose no less.

    In ladders there are none, as far as losses are monotone. Here there are many (half the units at twice the bits),
    and a choice that is filled up to use its limits must not be brought to them.
    """
    kept = []
    for n, row in enumerate(zip(*(limit.costs for limit in limits.limits), strict=True)):
        costs, own = np.stack(row), losses[n, : len(row[0])]
        no_more = (costs[:, :, None] <= costs[:, None, :]).all(axis=0) & (own[:, None] <= own)  # [k, k'] k against k'
        equal = no_more & no_more.T
        later = np.arange(len(own))[:, None] > np.arange(len(own))
        kept.append(np.flatnonzero(~(no_more & (~equal | later)).any(axis=0)))
    fewer = np.zeros((len(kept), max(len(k) for k in kept)))
    for filled, k, own in zip(fewer, kept, losses, strict=True):
        filled[: len(k)] = own[k]
    return limits.among(kept), fewer


def _placed(levels: Space, loss: FloatArray, space: Space) -> tuple[list[IntArray], FloatArray]:
    """Units [N][K] and losses [N, K] of the levels, decision by decision of `space`.

    What it decides and `levels` do not has one option, which loses nothing.
    """
    places = space.places_of(levels)
    if places is None or len(loss) != levels.num_decisions:
        raise InputError(
            "the additive program decides what was scanned",
            values=f"asked for {space.num_decisions} decisions, scanned {levels.num_decisions}, losses of {len(loss)}",
            remedy="Ask for the space that was searched",
        )
    units = [row[:1] for row in space.units]
    placed = np.zeros((space.num_decisions, loss.shape[1]))
    for n, row, losses in zip(places, levels.units, loss, strict=True):
        units[n], placed[n] = row, losses
    return units, placed


def _optimum(loss: FloatArray, allowed: Sequence[IntArray], limits: Limits) -> IntArray:
    """[N] levels, which `allowed` [N][K] brings down to the options of `limits`: the best under the binding one."""
    binding = limits.binding
    rows = [costs[options] for costs, options in zip(binding.costs, allowed, strict=True)]
    table, floors = CostTable.of_rows([rows])
    spare = min(binding.most, binding.dense) - binding.fixed - int(floors.sum())
    best = cost_to_go(table, loss, spare).best_choice(spare)
    # A measured table is seldom monotone, so its optimum may leave something over: a plan never gives capacity away.
    return fit(table, np.array([spare]), best, -loss)


def interpolated_losses(levels: Space, loss: FloatArray, space: Space) -> FloatArray:
    """[N, K] the loss of every option of `space`: `loss` of the levels, linear between them; 0 where there is none.

    Raises InputError as `additive_architecture`.
    """
    losses = np.zeros((space.num_decisions, int(space.counts.max())))
    if not space.is_of_units:
        places = space.places_of(levels)
        _placed(levels, loss, space)  # the checks
        assert places is not None
        if space.has_density:
            for n, amounts, measured in zip(places, levels.amounts, loss, strict=True):
                own = space.amounts[n]
                losses[n, : len(own)] = np.interp(own, amounts, measured[: len(amounts)])
            return losses
        for n, decision, measured in zip(places, levels.decisions, loss, strict=True):
            _interpolate(losses[n], space.decisions[n].options[0], decision.options[0], measured)
        return losses
    for row, units, of_levels, measured in zip(losses, space.units, *_placed(levels, loss, space), strict=True):
        row[: len(units)] = np.interp(units, of_levels, measured[: len(of_levels)])
    return losses


def _interpolate(row: FloatArray, options: Options, levels: Options, loss: FloatArray) -> None:
    """Fill `row` with the losses of `options`, linear in the units between `levels` of the same bits, or of no units.

    Raises InputError if bits were not measured.
    """
    bits, of_levels = (np.array([x.bits or 0 for x in own]) for own in (options, levels))
    row[: len(options)][options.units == 0] = loss[: len(levels)][levels.units == 0].max(initial=0.0)
    for each in np.unique(bits[options.units > 0]):
        same = np.flatnonzero((of_levels == each) | (levels.units == 0))
        if not (levels.units[same] > 0).any():
            raise InputError(
                "the additive program decides among bits that were scanned",
                values=f"{each or 'as dense'}, scanned {sorted(set(of_levels.tolist()))}",
                remedy="Search again in this space",
            )
        same = same[np.argsort(levels.units[same], kind="stable")]
        wanted = np.flatnonzero((bits == each) & (options.units > 0))
        row[wanted] = np.interp(options.units[wanted], levels.units[same], loss[same])
