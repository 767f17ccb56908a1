"""Limits as integer tables, against their definitions tried choice by choice."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning.allocators.uniform import uniform_choice
from pruning.errors import InfeasibleBudgetError
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.space import Choice
from tests.pruning import made_up_limits
from tests.pruning.made_up_limits import (
    cost_of,
    draw_choice,
    every_choice,
    ladders,
    limit,
    limits_of,
    meets,
    ragged_limits,
)

QUICK = settings(max_examples=60, deadline=None)


class TestInfeasible:
    def test_the_limit_exceeded_most_is_named_with_the_nearest_value_of_each(self) -> None:
        memory = limit(LimitKind.MEMORY_BYTES, 100, 90, (10, 20, 30), (10, 20, 30))
        latency = limit(LimitKind.LATENCY_MS, 2_000_000, 0, (1_000_001, 2_000_000, 3_000_000), (3_000_000,) * 3)
        disk = limit(LimitKind.DISK_BYTES, 1000, 0, (10, 20, 30), (10, 20, 30))
        with pytest.raises(InfeasibleBudgetError) as caught:
            limits_of(memory, latency, disk)
        error = caught.value
        assert error.binding == "latency_ms"
        # Rounded up to a microsecond, so that asking for it is enough; a limit that holds is as asked.
        assert error.nearest_values == {"memory_bytes": 110, "latency_ms": 4.001, "disk_bytes": 1000}
        assert error.nearest == 4.001
        assert "memory_bytes=110" in error.remedy
        assert "disk" not in error.remedy
        limits_of(replace(memory, most=110), replace(latency, most=4_001_000), disk)

    @QUICK
    @given(ragged_limits(), st.data())
    def test_nearest_values_are_exact(self, limits: Limits, data: st.DataObject) -> None:
        less = [data.draw(st.integers(-2, 3)) for _ in limits.limits]
        asked = tuple(replace(x, most=x.least - short) for x, short in zip(limits.limits, less, strict=True))
        if max(less) <= 0:
            Limits(limits.space, asked)
            return
        with pytest.raises(InfeasibleBudgetError) as caught:
            Limits(limits.space, asked)
        broken = {x.kind.value for x in asked if x.least > x.most}
        assert caught.value.binding in broken
        nearest = tuple(replace(x, most=max(x.least, x.most)) for x in asked)
        for x in nearest:
            assert caught.value.nearest_values[x.kind.value] == x.kind.in_its_unit(x.most)
        Limits(limits.space, nearest)
        for i, x in enumerate(nearest):
            with pytest.raises(InfeasibleBudgetError):
                Limits(limits.space, (*nearest[:i], replace(x, most=x.least - 1), *nearest[i + 1 :]))

    def test_costs_without_a_common_floor_are_a_bug(self) -> None:
        memory = limit(LimitKind.MEMORY_BYTES, 9, 0, (1, 2, 3), (1, 2, 3))
        latency = limit(LimitKind.LATENCY_MS, 9, 0, (1, 2, 3), (2, 1, 3))
        with pytest.raises(ValueError, match="cheapest under every limit"):
            _ = limits_of(memory, latency).table
        # Under one limit there is one, wherever it is.
        assert limits_of(latency).table.floor.tolist() == [0, 1]


class TestByHand:
    def test_slack_and_what_binds(self) -> None:
        memory = limit(LimitKind.MEMORY_BYTES, 160, 100, (10, 20, 30), (10, 20, 30))
        latency = limit(LimitKind.LATENCY_MS, 7, 1, (1, 2, 3), (3, 4, 5))
        both = limits_of(memory, latency)
        assert both.binding is latency
        assert not both.allows_everything
        assert both.slack(np.array([0, 2])).tolist() == [20, 0]
        assert both.slack((2, 2)).tolist() == [0, -2]
        # Everything is the dearest choice: (30 + 30) + 100, and 3 + 5 + 1.
        assert limits_of(memory, replace(latency, most=9)).allows_everything

    def test_no_more_is_left_over_than_could_be_used(self) -> None:
        wide = limits_of(limit(LimitKind.FLOPS, 10**30, 5, (10, 20), (10, 40)))
        assert wide.spare.tolist() == [40]
        assert wide.slack(wide.space.top).tolist() == [0]

    def test_limits_near_the_end_of_64_bits(self) -> None:
        huge = limits_of(limit(LimitKind.FLOPS, 2**63 - 1, 0, (2**60, 2**61, 2**61 + 1)))
        assert huge.allows_everything
        assert huge.feasible(0, huge.spare).tolist() == [False, True, True]
        assert huge.is_tight((2,))
        assert not huge.is_tight((1,))

    def test_what_keeps_more_and_costs_the_same_is_not_given_away(self) -> None:
        tiles = limits_of(limit(LimitKind.LATENCY_MS, 40, 0, (20, 20, 40), (20, 30, 40)))
        assert tiles.is_tight((1, 0))
        assert not tiles.is_tight((0, 0))

    def test_costs_that_fall(self) -> None:
        # A bias is dearer than the last channels: dense costs less than one step below it.
        biased = limits_of(limit(LimitKind.FFN_PARAMETERS, 12, 0, (5, 9, 13, 10)))
        assert [biased.is_tight((k,)) for k in range(4)] == [False, False, False, True]
        assert not replace(biased, limits=(replace(biased.limits[0], most=13),)).is_tight((3,))
        # What is left over of 12 is less than the largest step, of 4, from 10 and from 9; 13 does not fit.
        assert biased.feasible(0, biased.spare).tolist() == [False, True, False, True]

    def test_equal_retention_under_several_limits(self) -> None:
        widths = (range(8, 72, 8), range(8, 136, 8))
        memory = limit(LimitKind.MEMORY_BYTES, 10_000, 0, *widths)
        latency = limit(LimitKind.LATENCY_MS, 100, 4, *widths)
        both = Limits(ladders(*widths), (memory, latency))
        # Half of both are 32 + 64 = 96.
        assert both.units_of(uniform_choice(both)) == [32, 64]


@QUICK
@given(ragged_limits(), st.data())
def test_slack_and_tightness_are_as_defined(limits: Limits, data: st.DataObject) -> None:
    for choice in [draw_choice(data, limits.space) for _ in range(5)]:
        slack = limits.slack(choice)
        assert slack.tolist() == [min(x.most, x.dense) - cost_of(x, choice) for x in limits.limits]
        assert bool((slack >= 0).all()) is meets(limits, choice)
        assert limits.is_tight(choice) is made_up_limits.is_tight(limits, choice)


def largest_step(limit: Limit) -> int:
    """The most that the next dearer option of a decision can cost."""
    ordered = [sorted({int(x) for x in row}) for row in limit.costs]
    return max((b - a for row in ordered for a, b in itertools.pairwise(row)), default=0)


def allowed(limits: Limits, prefix: Choice) -> list[int]:
    """The options of the next decision that are feasible behind `prefix`: the definition."""
    n, rows = len(prefix), [x.costs for x in limits.limits]

    def left(j: int, k: int, others: str) -> int:
        """What is left of limit `j` if all decisions behind this one are their cheapest, or dearest."""
        costs = [int(row[c]) for row, c in zip(rows[j], (*prefix, k), strict=False)]
        rest = sum(int(getattr(row, others)()) for row in rows[j][n + 1 :])
        x = limits.limits[j]
        return min(x.most, x.dense) - x.fixed - sum(costs) - rest

    every = range(len(rows))
    fitting = [k for k in range(len(rows[0][n])) if all(left(j, k, "min") >= 0 for j in every)]
    using = [k for k in fitting if any(left(j, k, "max") < largest_step(limits.limits[j]) for j in every)]
    return using or fitting[-1:]


def reached(limits: Limits, prefix: Choice = ()) -> set[Choice]:
    """All choices that `Limits.feasible` leads to."""
    n = len(prefix)
    if n == limits.space.num_decisions:
        return {prefix}
    slack = limits.slack([*prefix, *limits.table.floor[n:].tolist()])
    options = np.flatnonzero(limits.feasible(n, slack)).tolist()
    assert options == allowed(limits, prefix)
    return set().union(*(reached(limits, (*prefix, k)) for k in options))


@QUICK
@given(ragged_limits(max_decisions=4, max_options=4))
def test_feasible_options_are_as_defined_and_lead_to_choices_within_the_limits(limits: Limits) -> None:
    found = reached(limits)
    assert found
    assert all(meets(limits, choice) for choice in found)


@QUICK
@given(ragged_limits(max_limits=1, max_decisions=4, max_options=4))
def test_under_one_limit_they_lead_to_what_uses_it_up_but_for_a_step(limits: Limits) -> None:
    (only,) = limits.limits
    assume(largest_step(only) > 0)
    most = min(only.most, only.dense)
    expected = {x for x in every_choice(limits) if 0 <= most - cost_of(only, x) < largest_step(only)}
    assert reached(limits) == expected


@QUICK
@given(ragged_limits(max_decisions=4, max_options=4, ladder=True))
def test_they_lead_to_every_tight_choice_of_a_ladder(limits: Limits) -> None:
    tight = {x for x in every_choice(limits) if made_up_limits.is_tight(limits, x)}
    assert tight
    assert tight <= reached(limits)


def test_all_at_once_as_one_by_one() -> None:
    limits = limits_of(
        limit(LimitKind.MEMORY_BYTES, 60, 0, (10, 20, 30), (10, 20), (10, 20, 30, 40)),
        limit(LimitKind.LATENCY_MS, 12, 0, (1, 5, 5), (2, 3), (0, 4, 8, 9)),
    )
    slack = np.array([[30, 9], [0, 0], [20, 3]])
    together = limits.table.feasible(1, slack)
    assert together.tolist() == [limits.feasible(1, row).tolist() for row in slack]
    after = limits.table.after(1, slack, np.array([1, 0, 1]))
    assert after.tolist() == [[20, 8], [0, 0], [10, 2]]


def test_a_choice_of_what_is_not_there_has_no_slack() -> None:
    limits = limits_of(limit(LimitKind.FLOPS, 50, 0, (10, 20, 30), (10, 40)))
    for choice in ((0, 2), (0, -1), (0,), (0, 0, 0)):
        for ask in (limits.slack, limits.is_tight, lambda x: limits.fit(x, np.zeros((2, 3)))):
            with pytest.raises(IndexError, match="an option of each decision"):
                ask(choice)


def test_limits_limit_something() -> None:
    with pytest.raises(ValueError, match="must be a limit"):
        Limits(limits_of(limit(LimitKind.FLOPS, 50, 0, (10,))).space, ())
