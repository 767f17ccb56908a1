"""The best choice if decisions did not interact: an exact dynamic program over one-layer losses.

Minimises sum_n loss[n, k_n] subject to sum_n excess[n, k_n] <= spare. The same problem is solved by dynamic programming
in SPDY (arXiv 2202.04824, section 3) and EvoPress's `dp_search` baseline (arXiv 2410.14649), and as an integer program
in Puzzle (arXiv 2411.19146).

The states of the program are what is left over after every remaining decision got its cheapest option, counted in units
of the costs' greatest common divisor: exact. Where that makes more than `max_states` states, the unit grows and costs
are rounded up and what remains is rounded down, so the limit is never exceeded.
"""

from dataclasses import dataclass

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.planning.cost_table import CostTable

MAX_STATES = 8192
"""Budget states per decision, at most: exact for 32 layers of 11,008 channels in multiples of 64 (at most 5,504)."""


@dataclass(frozen=True, eq=False)
class CostToGo:
    """The least that decisions n.. can add to the objective, for every budget left: a prior for a search.

    Attributes:
        table: what options cost, under one limit.
        loss: [N, K] objective of each option, as given.
        values: [N + 1, S + 1] least objective of decisions n.. with s spare units; the last row is 0.
        unit: cost per spare unit.
    """

    table: CostTable
    loss: FloatArray
    values: FloatArray
    unit: int

    def action_values(self, n: int, slack: int) -> FloatArray:
        """[K] least objective of decisions `n`.. for each option of `n`; infinity where it does not fit.

        `slack` is what decisions `n`.. may cost together above their cheapest options.
        """
        left = slack - self.table.excess[0, n]
        states = np.minimum(left // self.unit, self.values.shape[1] - 1)
        found: FloatArray = np.where(left >= 0, self.loss[n] + self.values[n + 1][np.maximum(states, 0)], np.inf)
        return found

    def best_choice(self, spare: int) -> IntArray:
        """The choice [N] of least objective that costs at most `spare`; of equal options, the last."""
        chosen = np.zeros(self.table.num_decisions, dtype=np.int64)
        for n in range(len(chosen)):
            values = self.action_values(n, spare)
            chosen[n] = len(values) - 1 - int(np.argmin(values[::-1]))
            spare -= int(self.table.excess[0, n, chosen[n]])
        return chosen


def cost_to_go(table: CostTable, loss: FloatArray, spare: int, *, max_states: int = MAX_STATES) -> CostToGo:
    """Solve the dynamic program backwards, from the last decision to the first: O(N K S) time, O(N S) memory.

    Raises:
        InputError: `loss` is not [N, K] finite numbers.
    """
    excess, exists = table.excess[0], table.exists
    if loss.shape != excess.shape or not np.isfinite(loss[exists]).all():
        raise InputError(
            f"the table of losses must hold {excess.shape[0]} x {excess.shape[1]} finite numbers",
            values=f"shape {loss.shape}, {int((~np.isfinite(loss)).sum())} not finite",
            remedy="Run the sensitivity scan again",
        )
    spare = min(spare, int(table.most_from[0, 0]))
    unit = max(int(np.gcd.reduce(excess[exists])), -(-spare // max_states), 1)
    states = spare // unit
    values = np.zeros((len(excess) + 1, states + 1))
    for n in reversed(range(len(excess))):
        best = np.full(states + 1, np.inf)
        for k in np.flatnonzero(exists[n]):
            units = -(-int(excess[n, k]) // unit)
            if units <= states:
                candidate = loss[n, k] + values[n + 1, : states + 1 - units]
                np.minimum(best[units:], candidate, out=best[units:])
        values[n] = best
    return CostToGo(table=table, loss=loss, values=values, unit=unit)
