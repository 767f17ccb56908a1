"""Hard limits as integer tables: what every option of every decision costs, under each limit.

Whatever a request asks for (a sparsity, bytes, milliseconds, operations), methods see the same thing: for each limit a
fixed cost and the costs of each decision's options, which must add up to at most so much. All integers, so nothing is
ever exceeded by rounding.

Letters: J limits, N decisions, K options of the decision that has most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import cached_property

import numpy as np

from pruning.arrays import BoolArray, FloatArray, IntArray
from pruning.errors import InfeasibleBudgetError
from pruning.planning.cost_table import CostTable
from pruning.planning.fit import fit
from pruning.planning.space import Choice, Space


class LimitKind(StrEnum):
    """What is limited. The tables count latency in nanoseconds, everything else in the unit of its name."""

    FFN_PARAMETERS = "ffn_parameters"
    PARAMETERS = "parameters"
    MEMORY_BYTES = "memory_bytes"
    LATENCY_MS = "latency_ms"
    FLOPS = "flops"
    DISK_BYTES = "disk_bytes"
    GGUF_BYTES = "gguf_bytes"
    NONZERO_WEIGHTS = "nonzero_weights"

    def in_its_unit(self, count: int) -> float | int:
        """A table's `count` as users say it; never less, so that asking for the result is enough."""
        return math.ceil(count / 1e3) / 1e3 if self is LimitKind.LATENCY_MS else count


@dataclass(frozen=True, eq=False)
class Limit:
    """At most `most`: the `fixed` cost, and of each decision the cost of the option that is chosen, [N][K]."""

    kind: LimitKind
    most: int
    fixed: int
    costs: tuple[IntArray, ...]

    @cached_property
    def least(self) -> int:
        """What the cheapest choice costs."""
        return self.fixed + int(np.minimum.reduceat(*self._in_a_row).sum())

    @cached_property
    def dense(self) -> int:
        """What the dearest choice costs."""
        return self.fixed + int(np.maximum.reduceat(*self._in_a_row).sum())

    @cached_property
    def _in_a_row(self) -> tuple[IntArray, IntArray]:
        """The costs of all options, and where each decision's begin."""
        ends = np.cumsum([len(row) for row in self.costs])
        return np.concatenate(self.costs), np.concatenate([[0], ends[:-1]])


@dataclass(frozen=True, eq=False)
class Limits:
    """All limits of one request over one space; at least one. Building them is the check that they can be met.

    Raises:
        InfeasibleBudgetError: even the cheapest option of every decision exceeds a limit; with the nearest values that
            can be met, which are exact, since one choice is cheapest under all limits at once.
        ValueError: it is not. A programming error: see `CostTable.of_rows`.
    """

    space: Space
    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        if not self.limits:
            raise ValueError("there must be a limit")
        broken = [limit for limit in self.limits if limit.least > limit.most]
        if not broken:
            _ = self._table_and_floors
            return
        binding = max(broken, key=lambda limit: limit.least / max(limit.most, 1))
        nearest = {limit.kind.value: limit.kind.in_its_unit(max(limit.least, limit.most)) for limit in self.limits}
        asked = {limit.kind.value: limit.kind.in_its_unit(limit.most) for limit in broken}
        raise InfeasibleBudgetError(
            f"the smallest plan needs {binding.kind} = {nearest[binding.kind]}",
            values=", ".join(f"{kind}={value}" for kind, value in asked.items()),
            remedy="Ask for at least " + ", ".join(f"{kind}={nearest[kind]}" for kind in asked),
            binding=binding.kind.value,
            nearest_values=nearest,
        )

    @property
    def allows_everything(self) -> bool:
        """The dearest choice meets every limit."""
        return all(limit.dense <= limit.most for limit in self.limits)

    @cached_property
    def _table_and_floors(self) -> tuple[CostTable, IntArray]:
        return CostTable.of_rows([limit.costs for limit in self.limits])

    @property
    def table(self) -> CostTable:
        """What options cost above the cheapest ones."""
        return self._table_and_floors[0]

    @cached_property
    def spare(self) -> IntArray:
        """[J] what all decisions together may cost above their floors; never more than they can."""
        floors = self._table_and_floors[1].sum(axis=1)
        allowed = [min(limit.most, limit.dense) - limit.fixed for limit in self.limits]
        spare: IntArray = np.array(allowed, dtype=np.int64) - floors
        return spare

    @cached_property
    def binding(self) -> Limit:
        """The limit that takes most: the one under which the largest share of what is decided has to go."""
        return max(self.limits, key=lambda x: Fraction(x.dense - x.most, max(x.dense - x.least, 1)))

    def among(self, kept: Sequence[IntArray]) -> "Limits":
        """The same limits over the options `kept` [N][K] of each decision alone; raises as the class."""
        space = self.space
        decisions = tuple(decision.take(k) for decision, k in zip(space.decisions, kept, strict=True))
        of = (replace(x, costs=tuple(row[k] for row, k in zip(x.costs, kept, strict=True))) for x in self.limits)
        return Limits(Space(decisions, space.dense), tuple(of))

    def slack(self, choice: Sequence[int] | IntArray) -> IntArray:
        """[J] what `choice` [N] leaves over; negative where a limit is exceeded."""
        slack: IntArray = self.spare - self.table.spent(self._checked(choice)[None])[0]
        return slack

    def feasible(self, n: int, slack: IntArray) -> BoolArray:
        """[K] as `CostTable.feasible`: options of decision `n` when decisions n.. may spend `slack` [J]."""
        feasible: BoolArray = self.table.feasible(n, slack[None])[0]
        return feasible

    def is_tight(self, choice: Sequence[int] | IntArray) -> bool:
        """Every limit is met, and no option above that of any decision would fit; see `CostTable.fitting_above`."""
        slack = self.slack(choice)
        return not bool((slack < 0).any() or self.table.fitting_above(self._checked(choice), slack).any())

    def fit(self, choice: Sequence[int] | IntArray, worth: FloatArray) -> IntArray:
        """[N] a choice near `choice` [N] that meets every limit and is tight; see `fit.fit`. Where options differ in
        more than units, it is filled up by what is worth no less alone: what costs more need not keep more there.

        `worth` [N, K] is what each option is worth, in any unit.
        """
        only_gains = not self.space.is_of_units
        return fit(self.table, self.spare, self._checked(choice), worth, only_gains=only_gains)

    def _checked(self, choice: Sequence[int] | IntArray) -> IntArray:
        """[N]; raises IndexError for an option that a decision does not have: its cost means nothing."""
        indices = np.asarray(choice, dtype=np.int64)
        if indices.shape != self.space.counts.shape or ((indices < 0) | (indices >= self.space.counts)).any():
            raise IndexError(f"a choice has an option of each decision: {indices.tolist()}")
        return indices

    def units_of(self, choice: Choice | IntArray) -> list[int]:
        """[N] units that `choice` keeps."""
        return list(self.space.units_of(choice))
