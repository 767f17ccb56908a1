"""The one greedy: by hand, against its promises on any table, and against the loops that it replaced on ladders."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.uniform import evenness, uniform_choice
from pruning.arrays import FloatArray, IntArray
from pruning.planning import fit
from pruning.planning.limits import Limit, LimitKind, Limits
from tests.pruning import made_up_limits
from tests.pruning.made_up import at_most, made_up_anatomy
from tests.pruning.made_up_limits import draw_choice, draw_worth, limit, limits_of, ragged_limits

QUICK = settings(max_examples=60, deadline=None)


def fitted(limits: Limits, units: list[float], worth: FloatArray | list[float] | None = None) -> list[int]:
    """Units [N] near `units` [N]. `worth` is [N, K], or what each unit is worth, [N]; by default of evenness."""
    if worth is None:
        worth = evenness(limits.space)
    elif np.ndim(worth) == 1:
        table = np.zeros((limits.space.num_decisions, int(limits.space.counts.max())))
        for row, of_space, each in zip(table, limits.space.units, worth, strict=True):
            row[: len(of_space)] = of_space * float(each)
        worth = table
    return limits.units_of(limits.fit(limits.space.at_most(units), np.asarray(worth)))


class TestByHand:
    def test_takes_from_the_layer_worth_least_and_gives_to_the_one_worth_most(self) -> None:
        anatomy = made_up_anatomy([64, 64, 64])
        assert fitted(at_most(anatomy, 88 * 30), [32, 32, 32], [1, 3, 2]) == [24, 32, 32]
        assert fitted(at_most(anatomy, 107 * 30), [32, 32, 32], [1, 3, 2]) == [32, 40, 32]

    def test_worth_that_falls(self) -> None:
        anatomy = made_up_anatomy([64, 64])
        # A layer is worth less the wider it is, layer 0 twice as much: 24 + 8, 32 + 8, then 32 + 16.
        worth = np.array([2.0, 1.0])[:, None] * np.log(np.arange(8, 65, 8))
        assert fitted(at_most(anatomy, 48 * 30), [0, 0], worth) == [32, 16]

    def test_worth_counts_against_what_it_costs(self) -> None:
        # A step in layer 1 takes three times as much of the limit: it is worth it only if it is worth more than thrice.
        both = limits_of(limit(LimitKind.FLOPS, 50, 0, (10, 20, 30), (10, 40, 70)))
        assert fitted(both, [8, 8], [1.0, 2.9]) == [24, 8]
        assert fitted(both, [8, 8], [1.0, 3.1]) == [8, 16]
        assert fitted(both, [24, 24], [1.0, 2.9]) == [24, 8]

    def test_a_step_down_is_not_a_step_up(self) -> None:
        anatomy = made_up_anatomy([24, 24])
        # From 16, the last channels of layer 0 are worth 5 and the next ones 1; of layer 1, 2 and 3.
        worth = np.array([[0.0, 5.0, 6.0], [0.0, 2.0, 5.0]])
        assert fitted(at_most(anatomy, 24 * 30), [16, 16], worth) == [16, 8]
        assert fitted(at_most(anatomy, 40 * 30), [16, 16], worth) == [16, 24]
        # Dense layers lose their last step: 1 against 3.
        assert fitted(at_most(anatomy, 40 * 30), [24, 24], worth) == [16, 24]

    def test_what_it_is_given_is_left_as_it_is(self) -> None:
        limits = at_most(made_up_anatomy([24, 24]), 40 * 30)
        given = np.array([0, 1])
        assert limits.fit(given, evenness(limits.space)).tolist() == [2, 1]
        assert limits.fit(np.array([2, 2]), evenness(limits.space)).tolist() == [1, 2]
        assert given.tolist() == [0, 1]

    def test_a_flat_stretch_is_free(self) -> None:
        # Tiles: 16 channels take as long as 8 in layer 0, nothing else fits.
        flat = limits_of(limit(LimitKind.LATENCY_MS, 45, 5, (20, 20, 40), (20, 30, 40)))
        assert fitted(flat, [8, 8]) == [16, 8]
        # Whatever it is said to be worth: what is free is not given away.
        assert fitted(flat, [8, 8], [-1.0, 1.0]) == [16, 8]
        # On the way down, a flat stretch frees nothing: layer 1 gives, however valuable.
        assert fitted(flat, [16, 16], [0.1, 9.0]) == [16, 8]

    def test_stretches_that_are_flat_everywhere_are_crossed(self) -> None:
        flat = limits_of(limit(LimitKind.LATENCY_MS, 35, 0, (10, 30, 30), (10, 30, 30)))
        assert fitted(flat, [24, 24], [2.0, 1.0]) == [8, 8]
        wide = Limits(flat.space, (replace(flat.limits[0], most=40),))
        assert fitted(wide, [24, 24], [2.0, 1.0]) == [24, 8]

    def test_several_limits_hold_at_once(self) -> None:
        memory = limit(LimitKind.MEMORY_BYTES, 160, 100, (10, 20, 30), (10, 20, 30))
        latency = limit(LimitKind.LATENCY_MS, 7, 1, (1, 2, 3), (3, 4, 5))
        both = limits_of(memory, latency)
        # Memory allows both at 24, latency 6 of (1 2 3) + (3 4 5).
        assert fitted(both, [24, 24], [1.0, 2.0]) == [8, 24]
        assert fitted(both, [24, 24], [2.0, 1.0]) == [24, 8]

    def test_a_layer_worth_a_billion_times_as_much_gives_last(self) -> None:
        anatomy = made_up_anatomy([64, 64, 64])
        assert fitted(at_most(anatomy, 80 * 30), [64, 64, 64], [1.0, 1e9, 1.0]) == [8, 64, 8]
        assert fitted(at_most(anatomy, 60 * 30), [64, 64, 64], [1.0, 1e9, 1.0]) == [8, 40, 8]

    def test_limits_near_the_end_of_64_bits(self) -> None:
        huge = limits_of(limit(LimitKind.FLOPS, 2**63 - 1, 0, (2**60, 2**61, 2**61 + 1)))
        assert fitted(huge, [8]) == [24]

    def test_options_that_cost_less_than_those_before_them(self) -> None:
        # 5 for the bias: dense costs 10 where 8 of 10 channels cost 13.
        biased = limits_of(limit(LimitKind.FFN_PARAMETERS, 12, 0, (9, 13, 10)))
        assert fitted(biased, [8]) == fitted(biased, [16]) == fitted(biased, [24]) == [24]
        # Its floor need not come first, and all that costs nothing is filled up from there.
        low = limits_of(limit(LimitKind.FFN_PARAMETERS, 14, 0, (9, 5, 5), (9, 9, 9)))
        assert fitted(low, [8, 8], [9.0, 0.0]) == [24, 24]

    def test_what_is_worth_less_than_something_cheaper_is_no_step_on_the_way(self) -> None:
        # A noisy scan: 16 channels of layer 0 are worth less than 8, and 24 most of all.
        noisy = limits_of(limit(LimitKind.FLOPS, 40, 0, (10, 20, 30), (10, 18, 40)))
        worth = np.array([[1.0, 0.5, 9.0], [0.0, 1.0, 2.0]])
        assert fitted(noisy, [8, 8], worth) == [24, 8]
        assert fitted(noisy, [24, 24], worth) == [24, 8]
        # Where nothing else uses up what is left, it is taken all the same.
        assert fitted(Limits(noisy.space, (replace(noisy.limits[0], most=30),)), [8, 8], worth) == [8, 16]
        alone = limits_of(limit(LimitKind.FLOPS, 20, 0, (10, 20, 30)))
        assert fitted(alone, [8], worth[:1]) == [16]

    def test_moves_that_undo_each_other(self) -> None:
        """Each middle option frees of one limit what it takes of the other: going there and back would never end."""
        memory = limit(LimitKind.MEMORY_BYTES, 10, 0, (0, 9, 3), (0, 3, 9))
        latency = limit(LimitKind.LATENCY_MS, 10, 0, (0, 3, 9), (0, 9, 3))
        both = limits_of(memory, latency)
        for start in ([1, 2], [2, 1], [1, 1], [2, 2]):
            chosen = both.fit(np.array(start), np.array([[0.0, 5.0, 5.0], [0.0, 5.0, 5.0]]))
            assert made_up_limits.is_tight(both, chosen)


@QUICK
@given(ragged_limits(max_options=7), st.data())
def test_within_the_limits_and_tight_whatever_the_table_and_the_worth(limits: Limits, data: st.DataObject) -> None:
    start = draw_choice(data, limits.space)
    chosen = limits.fit(start, draw_worth(data, limits.space))
    assert made_up_limits.is_tight(limits, chosen)
    if made_up_limits.is_tight(limits, start):
        assert chosen.tolist() == list(start)


@pytest.mark.parametrize("strange", [np.inf, -np.inf, np.nan, 1e308])
def test_it_ends_whatever_options_are_worth(strange: float) -> None:
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for _ in range(50):
            rows = rng.integers(0, 9, (2, 3, 5))
            rows[:, :, 2] = 0
            limits = limits_of(*(limit(kind, 12, 0, *row) for kind, row in zip(LimitKind, rows, strict=False)))
            worth = np.where(rng.random((3, 5)) < 0.6, rng.choice([strange, -strange], (3, 5)), rng.normal(size=(3, 5)))
            assert made_up_limits.is_tight(limits, limits.fit(rng.integers(0, 5, 3), worth))


@QUICK
@given(ragged_limits(ladder=True))
def test_equal_retention_is_within_the_limits_and_tight(limits: Limits) -> None:
    assert made_up_limits.is_tight(limits, uniform_choice(limits))


def old_shrink(limits: Limits, indices: IntArray, worth: FloatArray) -> None:
    """As it was while every layer had one ladder of widths and costs never fell: `Limits._shrink`."""
    table, layers = limits.table.excess, np.arange(len(indices))
    span = np.array([max(x.dense - x.least, 1) for x in limits.limits])
    slack = limits.slack(indices)
    while (slack < 0).any():
        worst = int(np.argmin(slack / span))
        below = np.maximum(indices - 1, 0)
        freed = table[:, layers, indices] - table[:, layers, below]
        useful = freed[worst] > 0 if freed[worst].any() else indices > 0
        able = np.flatnonzero(useful)
        lost = worth[able, indices[able]] - worth[able, below[able]]
        layer = able[np.argmin(lost / np.maximum(freed[worst, able], 1))]
        slack += freed[:, layer]
        indices[layer] -= 1


def old_grow(limits: Limits, indices: IntArray, worth: FloatArray) -> None:
    """As it was: `Limits._grow`."""
    table, layers = limits.table.excess, np.arange(len(indices))
    slack = limits.slack(indices)
    while True:
        above = np.minimum(indices + 1, limits.space.counts - 1)
        taken = table[:, layers, above] - table[:, layers, indices]
        able = np.flatnonzero((taken <= slack[:, None]).all(axis=0) & (indices < limits.space.counts - 1))
        if not len(able):
            return
        gained = worth[able, above[able]] - worth[able, indices[able]]
        share = (taken[:, able] / (slack[:, None] + 1)).max(axis=0) + 1e-12
        layer = able[np.argmax(gained / share)]
        slack -= taken[:, layer]
        indices[layer] += 1


@QUICK
@given(ragged_limits(ladder=True, least_step=1, max_options=8), st.data())
def test_on_ladders_whose_costs_grow_it_is_the_greedy_that_it_replaced(limits: Limits, data: st.DataObject) -> None:
    # Steps down to what is worth more, which it took one by one, are now one step.
    start, worth = np.array(draw_choice(data, limits.space)), np.sort(draw_worth(data, limits.space), axis=1)
    expected = start.copy()
    old_shrink(limits, expected, worth)
    old_grow(limits, expected, worth)
    assert limits.fit(start, worth).tolist() == expected.tolist()


@QUICK
@given(ragged_limits(ladder=True, max_options=8), st.data())
def test_with_flat_stretches_it_fills_up_as_the_greedy_that_it_replaced(limits: Limits, data: st.DataObject) -> None:
    start = limits.fit(draw_choice(data, limits.space), draw_worth(data, limits.space))
    wider = Limits(limits.space, tuple(replace(x, most=x.most + data.draw(st.integers(0, 20))) for x in limits.limits))
    worth = np.sort(draw_worth(data, limits.space), axis=1)
    expected = start.copy()
    old_grow(wider, expected, worth)
    assert wider.fit(start, worth).tolist() == expected.tolist()


def test_at_the_size_of_a_real_model() -> None:
    """64 decisions of 20 options under three limits that disagree, from everywhere, with floors anywhere."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 10**9, (3, 64, 20))
    rows[:, np.arange(64), rng.integers(0, 20, 64)] = 0
    kinds = (LimitKind.MEMORY_BYTES, LimitKind.LATENCY_MS, LimitKind.FLOPS)
    for share in (0.1, 0.3, 0.6, 1.0):
        most = [int(share * row.max(axis=1).sum()) for row in rows]
        costs = [tuple(row) for row in rows]
        limits = limits_of(*(Limit(kind, m, 0, c) for kind, m, c in zip(kinds, most, costs, strict=True)))
        for start in (limits.space.bottom, limits.space.top, rng.integers(0, 20, 64)):
            assert limits.is_tight(limits.fit(start, rng.normal(size=(64, 20))))


def test_a_long_way_down_looks_at_each_option_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two limits that disagree about which decisions are dear take turns; what is weighed stays linear in the options.
    rng, num_options = np.random.default_rng(0), 200
    rows = [tuple(np.arange(1, num_options + 1) * int(rng.integers(5, 15)) for _ in range(12)) for _ in range(2)]
    kinds = (LimitKind.FLOPS, LimitKind.LATENCY_MS)
    limits = limits_of(*(Limit(x, sum(int(r[-1]) for r in of) // 2, 0, of) for x, of in zip(kinds, rows, strict=True)))
    weighed = 0

    def counted(*args: Any) -> bool:
        nonlocal weighed
        weighed += 1
        return frees(*args)

    frees = fit._frees
    monkeypatch.setattr(fit, "_frees", counted)
    found = limits.fit(limits.space.top, np.cumsum(rng.uniform(0, 1, (12, num_options)), axis=1))
    assert limits.is_tight(found)
    moves = int((limits.space.counts - 1 - found).sum())
    assert moves > 500
    assert weighed <= 2 * len(rows) * (moves + len(found))
