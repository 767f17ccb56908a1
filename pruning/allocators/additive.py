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
from pruning.planning.space import Space


def additive_architecture(levels: Space, loss: FloatArray, limits: Limits) -> Architecture:
    """Allowed options that meet `limits`, of which none can grow by one more step.

    Under one limit: the optimum on `levels`, filled up. Under several: the best that is found of all allowed options,
    whose losses are `interpolated_losses`, beginning with the optimum under the limit that takes most.

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
    units, losses_of_levels = _placed(levels, loss, space)
    allowed = [
        np.maximum(np.searchsorted(row, wanted, side="right") - 1, 0)
        for row, wanted in zip(space.units, units, strict=True)
    ]
    chosen = _optimum(losses_of_levels, allowed, limits)
    start = np.array([options[k] for options, k in zip(allowed, chosen, strict=True)])
    if len(limits.limits) == 1:
        # Nothing is exceeded, so units are only added: they gain the slope of the losses to the next level up.
        worth = np.zeros(limits.table.exists.shape)
        for row, kept, of_level, losses, k in zip(worth, space.units, units, losses_of_levels, chosen, strict=True):
            if k < len(of_level) - 1:
                row[: len(kept)] = kept * float(losses[k] - losses[k + 1]) / (of_level[k + 1] - of_level[k])
        return space.architecture(limits.fit(start, worth))
    losses = interpolated_losses(levels, loss, space)
    longest = max(len(options) for options in allowed)
    marks = np.stack([np.pad(options, (0, longest - len(options)), mode="edge") for options in allowed])
    return space.architecture(least_within(limits, losses, limits.fit(start, -losses), marks))


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
    for row, units, of_levels, measured in zip(losses, space.units, *_placed(levels, loss, space), strict=True):
        row[: len(units)] = np.interp(units, of_levels, measured[: len(of_levels)])
    return losses
