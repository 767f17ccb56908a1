"""What the options of a space cost under each limit, apart from how much is allowed: one table serves many budgets.

Costs count from each decision's cheapest option up ("excess"), so what every choice costs drops out.
Letters: B batch, J limits, N decisions, K options of the decision that has most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pruning.arrays import BoolArray, IntArray

NEVER = 2**62
"""Excess of an option that a decision does not have. Sums of real costs stay below it."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """int64 [J, N, K] excess costs; `NEVER` behind the last option of each decision.

    Of each decision one option, its floor, has an excess of 0 under every limit at once.
    """

    excess: IntArray

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[IntArray]]) -> tuple["CostTable", IntArray]:
        """From the costs [J][N][K], and the floors' own costs [J, N].

        Raises:
            ValueError: a decision has no option that is cheapest under every limit. A programming error: who builds a
                space for a device drops the options that break this.
        """
        longest = max(len(row) for row in rows[0])
        table = np.full((len(rows), len(rows[0]), longest), NEVER, dtype=np.int64)
        for j, of_limit in enumerate(rows):
            for n, row in enumerate(of_limit):
                table[j, n, : len(row)] = row
        least = table.min(axis=2)
        if not (table == least[:, :, None]).all(axis=0).any(axis=1).all():
            raise ValueError("each decision must have one option that is cheapest under every limit")
        table -= np.where(table == NEVER, 0, least[:, :, None])
        return cls(table), least

    @property
    def num_decisions(self) -> int:
        return int(self.excess.shape[1])

    @cached_property
    def exists(self) -> BoolArray:
        """[N, K] whether a decision has that option."""
        exists: BoolArray = self.excess[0] < NEVER
        return exists

    @cached_property
    def floor(self) -> IntArray:
        """[N] the cheapest option of each decision; of several, the first."""
        floor: IntArray = (self.excess == 0).all(axis=0).argmax(axis=1)
        return floor

    @cached_property
    def most(self) -> IntArray:
        """[J, N] excess of each decision's dearest option."""
        most: IntArray = np.where(self.exists, self.excess, 0).max(axis=2)
        return most

    @cached_property
    def most_from(self) -> IntArray:
        """[N + 1, J] excess of the dearest options of decisions n.. together."""
        return np.concatenate([self.most[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros_like(self.most[:, :1])], axis=1).T

    @cached_property
    def largest_step(self) -> IntArray:
        """[J] the most that going from one option to the next dearer one of a decision can cost."""
        ordered = np.sort(np.where(self.exists, self.excess, self.most[:, :, None]), axis=2)
        steps: IntArray = np.diff(ordered, axis=2).max(axis=(1, 2), initial=0)
        return steps

    @cached_property
    def used_up_below(self) -> IntArray:
        """[N + 1, J] slack of decisions n.. that can be used up but for a step: what is below this."""
        below: IntArray = self.most_from + self.largest_step
        return below

    @cached_property
    def columns(self) -> list[IntArray]:
        """[K, J] of each decision."""
        return [np.ascontiguousarray(self.excess[:, n].T) for n in range(self.num_decisions)]

    def spent(self, choices: IntArray) -> IntArray:
        """[B, J] excess of `choices` [B, N]."""
        places = choices + np.arange(self.num_decisions) * self.excess.shape[2]
        spent: IntArray = self.excess.reshape(len(self.excess), -1).take(places, axis=1).sum(axis=2).T
        return spent

    def fitting_above(self, choice: IntArray, slack: IntArray) -> BoolArray:
        """[N, K] which options are above those of `choice` [N], and fit where it leaves `slack` [J] over.

        An option is above another one of its decision if it costs no less under any limit, and more under one or as
        much and comes later: what is later keeps more.
        """
        taken = self.excess - self.excess[:, np.arange(len(choice)), choice][:, :, None]
        later = np.arange(self.excess.shape[2]) > choice[:, None]
        return fits_above(taken, later, slack)

    @cached_property
    def by_cost(self) -> tuple[IntArray, IntArray]:
        """Decision and option of all options, as `cheapest_first`."""
        return self.cheapest_first(*np.nonzero(self.exists))

    def cheapest_first(self, n: IntArray, k: IntArray) -> tuple[IntArray, IntArray]:
        """Options `k` of decisions `n`, both ascending, decision by decision and the cheapest first; of equals,
        the earlier one.

        Under several limits, what is cheaper counts in shares of what each limit's dearest options cost together.
        """
        shares = (self.excess[:, n, k] / np.maximum(self.most_from[0], 1)[:, None]).sum(axis=0)
        order = np.lexsort((shares, n))
        return n[order], k[order]

    def after(self, n: int, slack: IntArray, options: IntArray) -> IntArray:
        """Slack [B, J] left of `slack` [B, J] after `options` [B] of decision `n`."""
        left: IntArray = slack - self.columns[n].take(options, axis=0)
        return left

    def feasible(self, n: int, slack: IntArray) -> BoolArray:
        """Which options of decision `n` may be chosen, [B, K], when decisions n.. may spend `slack` [B, J] above their
        floors, which is not negative. None is empty.

        An option is feasible if it fits, and if the decisions after it can use up at least one limit but for one step:
        a plan gives no capacity away.
        """
        left = slack[:, None] - self.columns[n]  # [B, K, J]
        fits, uses = left >= 0, left < self.used_up_below[n + 1]
        # Of one limit there is nothing to reduce, which takes longest of all this; so do the methods `all` and `any`.
        one = len(self.excess) == 1
        fitting: BoolArray = fits[:, :, 0] if one else np.logical_and.reduce(fits, axis=2)
        using: BoolArray = fitting & (uses[:, :, 0] if one else np.logical_or.reduce(uses, axis=2))
        if not np.logical_and.reduce(np.logical_or.reduce(using, axis=1)):
            highest = fitting & (fitting.cumsum(axis=1) == fitting.sum(axis=1, keepdims=True))
            using = np.where(using.any(axis=1, keepdims=True), using, highest)
        return using


def fits_above(taken: IntArray, later: BoolArray, slack: IntArray) -> BoolArray:
    """Whether options that take `taken` [J, ...] more, and come later or not, are above what is chosen and fit into
    `slack` [J]; see `CostTable.fitting_above`."""
    most = slack.reshape(-1, *[1] * (taken.ndim - 1))
    fits: BoolArray = ((taken >= 0) & (taken <= most)).all(axis=0) & (taken.any(axis=0) | later)
    return fits
