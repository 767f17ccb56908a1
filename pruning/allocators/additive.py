"""The choice of the least summed one-layer losses, under one limit or several."""

import numpy as np

from pruning.allocators.additive_dp import cost_to_go
from pruning.anatomy.architecture import Architecture
from pruning.arrays import FloatArray, IntArray
from pruning.planning.cost_table import CostTable
from pruning.planning.fit import fit
from pruning.planning.limits import Limits
from pruning.planning.solver import least_within
from pruning.planning.space import Space


def additive_architecture(levels: Space, loss: FloatArray, limits: Limits) -> Architecture:
    """Allowed widths that meet `limits`, of which none can grow by one more step.

    Under one limit: the optimum on `levels`, filled up. Under several: the best that is found of all allowed widths,
    whose losses are `interpolated_losses`, beginning with the optimum under the limit that takes most.

    Args:
        levels: the coarse space that was measured.
        loss: [N, K] of each level while all other layers are dense.
        limits: over a fine space; no allowed width is below the layer's lowest level.

    Raises:
        InputError: `loss` is not [N, K] finite numbers.
    """
    space = limits.space
    allowed = np.stack([space.at_most(list(level)) for level in zip(*levels.units, strict=True)], axis=1)
    chosen = _optimum(loss, allowed, limits)
    start = space.at_most(levels.units_of(chosen))
    if len(limits.limits) == 1:
        # Nothing is exceeded, so channels are only added: they gain the slope of the losses to the next level up.
        worth = np.zeros(limits.table.exists.shape)
        for row, units, of_level, losses, k in zip(worth, space.units, levels.units, loss, chosen, strict=True):
            if k < len(of_level) - 1:
                row[: len(units)] = units * float(losses[k] - losses[k + 1]) / (of_level[k + 1] - of_level[k])
        return space.architecture(limits.fit(start, worth))
    losses = interpolated_losses(levels, loss, space)
    return space.architecture(least_within(limits, losses, limits.fit(start, -losses), allowed))


def _optimum(loss: FloatArray, allowed: IntArray, limits: Limits) -> IntArray:
    """[N] levels, which `allowed` [N, K] brings down to the options of `limits`: the best under the binding one."""
    binding = limits.binding
    rows = [costs[options] for costs, options in zip(binding.costs, allowed, strict=True)]
    table, floors = CostTable.of_rows([rows])
    spare = min(binding.most, binding.dense) - binding.fixed - int(floors.sum())
    best = cost_to_go(table, loss, spare).best_choice(spare)
    # A measured table is seldom monotone, so its optimum may leave something over: a plan never gives capacity away.
    return fit(table, np.array([spare]), best, -loss)


def interpolated_losses(levels: Space, loss: FloatArray, space: Space) -> FloatArray:
    """[N, K] the loss of every option of `space`: `loss` of the levels, linear between them; 0 where there is none."""
    losses = np.zeros((space.num_decisions, int(space.counts.max())))
    for row, units, measured_units, measured in zip(losses, space.units, levels.units, loss, strict=True):
        row[: len(units)] = np.interp(units, measured_units, measured)
    return losses
