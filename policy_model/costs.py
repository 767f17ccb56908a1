"""The costs that the policy decides under: of one request, or of many problems at once.

Letters: B batch, J limits, N decisions, K options, as many in each: decisions of fewer repeat their last one.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from pruning.arrays import BoolArray, IntArray
from pruning.planning.cost_table import CostTable
from pruning.planning.limits import Limits
from pruning.planning.space import Space
from values.decisions import padded
from values.encoding import Encoding


def costs_within(
    levels: Space, limits: Limits, places: IntArray | None = None
) -> tuple["DecisionCosts", IntArray, IntArray, IntArray]:
    """Costs of the `levels` brought down to what `limits` allow; which options [N, K] of theirs that are; the units
    [N, K] of those; and the slack [J]. `places` [N] are those of `Space.places_of`, by default one after another.

    Limits that the dearest choice meets are left out, unless all are. What costs nothing under the others is taken: of
    options on one stair a level is the last. The slack is negative where even the first levels are too much.
    """
    places = np.arange(levels.num_decisions) if places is None else places
    allowed, widest = _brought_down(levels, limits.space, tuple(places.tolist()))
    table = limits.table
    can_bind = np.flatnonzero(limits.spare < table.most_from[0])
    if not len(can_bind):
        can_bind = np.arange(len(limits.spare))
    excess = table.excess[can_bind][:, places]
    decisions = np.arange(len(allowed))[:, None]
    options = _last_of_stair(excess)[decisions, widest]  # [N, K]
    units = allowed[decisions, options]
    costs = excess[:, decisions, options]
    slack = limits.spare[can_bind] - costs[:, :, 0].sum(axis=1)
    return DecisionCosts(costs - costs[:, :, :1]), options, units, slack


@lru_cache(maxsize=16)
def _brought_down(levels: Space, space: Space, places: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Units [N, K] that `space` allows at the decisions `places`, and the widest of its options [N, K] that keeps no
    more than each of `levels`; the first where none does."""
    allowed = [space.units[n] for n in places]
    wanted = padded(levels.units)
    found = [np.searchsorted(row, units, side="right") - 1 for row, units in zip(allowed, wanted, strict=True)]
    return padded(allowed), np.maximum(np.stack(found), 0)


def _last_of_stair(excess: IntArray) -> IntArray:
    """[N, K] of each option the last one in a row that costs the same under every limit [J, N, K]."""
    options = np.arange(excess.shape[2])
    rises: BoolArray = (excess[:, :, 1:] != excess[:, :, :-1]).any(axis=0)
    ends = np.where(np.append(rises, np.ones((len(rises), 1), dtype=np.bool_), axis=1), options, len(options))
    last: IntArray = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return last


@dataclass(frozen=True, eq=False)
class DecisionCosts(CostTable):
    """The costs of N decisions of K options each, which grow along the options."""

    @cached_property
    def free(self) -> IntArray:
        """[N, K] the last option that costs as much as each under every limit: what a stair gives on top."""
        same: BoolArray = (self.excess[..., None, :] == self.excess[..., :, None]).all(axis=0)
        last: IntArray = same.shape[-1] - 1 - same[..., ::-1].argmax(axis=-1)
        return last


@dataclass(frozen=True, eq=False)
class ManyCosts(DecisionCosts):
    """The costs of B problems, one of each batch row: `excess` is [J, B, N, K], and what is [J] of one table is [B, J].

    Problems of fewer limits have one of theirs repeated.
    """

    def of(self, index: IntArray) -> "ManyCosts":
        """Of some problems."""
        return ManyCosts(self.excess[:, index])

    @cached_property
    def most_from(self) -> IntArray:
        """[N + 1, B, J]."""
        most = self.excess[..., -1]
        sums = np.concatenate([most[..., ::-1].cumsum(axis=2)[..., ::-1], np.zeros_like(most[..., :1])], axis=2)
        return sums.transpose(2, 1, 0)

    @cached_property
    def used_up_below(self) -> IntArray:
        """[N + 1, B, 1, J]."""
        steps = np.diff(self.excess, axis=3).max(axis=(2, 3), initial=0).T
        below: IntArray = (self.most_from + steps)[:, :, None]
        return below

    @cached_property
    def columns(self) -> list[IntArray]:
        """[B, K, J] of each decision."""
        return [np.ascontiguousarray(self.excess[:, :, n].transpose(1, 2, 0)) for n in range(self.excess.shape[2])]

    def after(self, n: int, slack: IntArray, options: IntArray) -> IntArray:
        left: IntArray = slack - self.columns[n][np.arange(len(options)), options]
        return left

    def spent(self, choices: IntArray) -> IntArray:
        """[B, J] excess of `choices` [B, N], one of each problem."""
        spent: IntArray = np.take_along_axis(self.excess, choices[None, :, :, None], axis=3)[..., 0].sum(axis=2).T
        return spent


def parameter_costs(encoding: Encoding) -> DecisionCosts:
    """FFN parameters of what the policy chooses from."""
    return DecisionCosts((encoding.parameters - encoding.parameters[:, :1])[None])
