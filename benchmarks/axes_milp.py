"""The additive program as an integer program, solved to its optimum: what Puzzletron does with independent scores.

    minimise sum of loss[n, k] x[n, k], over x in {0, 1}: one option a decision, and every limit met.

By HiGHS (`scipy.optimize.milp`), under any number of limits.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limits
from pruning.planning.space import Choice

_TOLERANCE = 1e-6
"""Share of a limit's room by which HiGHS may exceed it."""


def least_sum(limits: Limits, loss: FloatArray) -> Choice:
    """The choice [N] within `limits` of least summed `loss` [N, K], filled up where that makes the sum no larger.

    Where costs are so fine that the solver cannot tell them from the tolerance, a millionth of the room is left over.
    """
    decisions, options = np.nonzero(limits.table.exists)
    columns = np.arange(len(decisions))
    one_each = coo_array((np.ones(len(columns)), (decisions, columns)))
    excess = limits.table.excess[:, decisions, options]
    room = np.maximum(limits.spare, 1)
    found = milp(
        loss[decisions, options] / max(float(np.abs(loss).max()), 1e-30),
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(excess / room[:, None], ub=_most(limits))],
        options={"mip_rel_gap": 0.0},
    )
    choice: IntArray = limits.table.floor.copy()
    if found.x is not None:
        taken = found.x > 0.5
        choice[decisions[taken]] = options[taken]
    filled = limits.fit(choice, -loss)
    every = np.arange(len(choice))
    is_met = bool((limits.slack(choice) >= 0).all())
    grows = loss[every, filled].sum() > loss[every, choice].sum()
    return tuple((choice if is_met and grows else filled).tolist())


def _most(limits: Limits) -> FloatArray:
    """[J] what choices may spend of each limit's room, as shares: half a unit more than is allowed, where costs are
    multiples of a unit that the solver can tell."""
    room = np.maximum(limits.spare, 1)
    units = np.array([np.gcd.reduce(costs[limits.table.exists]) for costs in limits.table.excess])
    units = np.maximum(units, 1)
    whole = (limits.spare // units * units + units / 2) / room
    most: FloatArray = np.where(units / room > 4 * _TOLERANCE, whole, limits.spare / room - _TOLERANCE)
    return most
