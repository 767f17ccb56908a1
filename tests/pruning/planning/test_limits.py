"""Limits as integer tables: hand-worked repairs, and that nothing is ever exceeded or given away."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.uniform import uniform_widths
from pruning.errors import InfeasibleBudgetError, InputError
from pruning.planning.limits import Limit, LimitKind, Limits, WidthSteps, linear_costs, parameter_limits
from tests.pruning.made_up import at_most, made_up_anatomy


def limits_of(*limits: Limit, widths: tuple[tuple[int, ...], ...]) -> Limits:
    return Limits(WidthSteps(tuple(np.array(row, dtype=np.int64) for row in widths)), limits)


def limit(kind: LimitKind, most: int, fixed: int, *rows: tuple[int, ...]) -> Limit:
    return Limit(kind, most, fixed, tuple(np.array(row, dtype=np.int64) for row in rows))


THREE = (8, 16, 24)


class TestWidthSteps:
    def test_multiples_and_the_dense_width(self) -> None:
        steps = WidthSteps.build(made_up_anatomy([32, 30, 6]), round_to=8)
        assert [row.tolist() for row in steps.widths] == [[8, 16, 24, 32], [8, 16, 24, 30], [6]]
        assert (steps.narrowest, steps.widest) == ([8, 8, 6], [32, 30, 6])

    def test_tensor_parallelism_divides_every_width(self) -> None:
        steps = WidthSteps.build(made_up_anatomy([48, 30]), round_to=6, tp_size=4)
        assert [row.tolist() for row in steps.widths] == [[12, 24, 36, 48], [12, 24]]

    @pytest.mark.parametrize(("round_to", "tp_size"), [(0, 1), (-8, 1), (8, 0)])
    def test_steps_are_positive(self, round_to: int, tp_size: int) -> None:
        with pytest.raises(InputError, match="at least 1"):
            WidthSteps.build(made_up_anatomy([32]), round_to=round_to, tp_size=tp_size)

    def test_a_layer_without_any_width(self) -> None:
        with pytest.raises(InputError, match="tp_size=4, layer 1 has 6 channels"):
            WidthSteps.build(made_up_anatomy([32, 6]), round_to=8, tp_size=4)

    @pytest.mark.parametrize("tp_size", [1, 2, 4])
    def test_heads_that_can_be_shared(self, tp_size: int) -> None:
        # 4 heads in 2 KV groups: among 4 devices, each group is on two.
        assert WidthSteps.build(made_up_anatomy([32]), round_to=8, tp_size=tp_size).widest == [32]

    @pytest.mark.parametrize("tp_size", [3, 8, 16])
    def test_heads_that_cannot(self, tp_size: int) -> None:
        with pytest.raises(InputError, match=r"4 heads in 2 KV groups.*Ask for a tp_size of 1, 2, 4"):
            WidthSteps.build(made_up_anatomy([480]), round_to=8, tp_size=tp_size)

    def test_groups_that_neither_divide_nor_are_divided(self) -> None:
        anatomy = made_up_anatomy([48])
        anatomy = replace(anatomy, layers=(replace(anatomy.layers[0], num_heads=12, num_kv_groups=3),))
        with pytest.raises(InputError, match="Ask for a tp_size of 1, 3, 6, 12"):
            WidthSteps.build(anatomy, round_to=4, tp_size=4)

    def test_the_widest_that_is_not_above(self) -> None:
        steps = WidthSteps.build(made_up_anatomy([32, 30]), round_to=8)
        assert steps.of(steps.at_most([23.9, 29])) == [16, 24]
        assert steps.of(steps.at_most([0, 1000])) == [8, 30]

    def test_without_what_is_narrower(self) -> None:
        steps = WidthSteps.build(made_up_anatomy([32, 30]), round_to=8).not_below([16, 17])
        assert [row.tolist() for row in steps.widths] == [[16, 24, 32], [24, 30]]
        assert WidthSteps.build(made_up_anatomy([32]), round_to=8).not_below([99]).narrowest == [32]


class TestRepair:
    def test_takes_from_the_layer_worth_least_and_gives_to_the_one_worth_most(self) -> None:
        anatomy = made_up_anatomy([64, 64, 64])
        assert at_most(anatomy, 88 * 30).repair([32, 32, 32], [1, 3, 2]) == [24, 32, 32]
        assert at_most(anatomy, 107 * 30).repair([32, 32, 32], [1, 3, 2]) == [32, 40, 32]

    def test_worth_of_the_present_widths(self) -> None:
        anatomy = made_up_anatomy([64, 64])
        # Each layer is worth less the wider it is, layer 0 twice as much: 24 + 8, 32 + 8, then 32 + 16.
        worth = at_most(anatomy, 48 * 30).repair([0, 0], lambda widths: np.array([2.0, 1.0]) / widths)
        assert worth == [32, 16]

    def test_worth_counts_against_what_it_costs(self) -> None:
        # A step in layer 1 takes three times as much of the limit: it is worth it only if it is worth more than thrice.
        both = limits_of(limit(LimitKind.FLOPS, 50, 0, (10, 20, 30), (10, 40, 70)), widths=(THREE, THREE))
        assert both.repair([8, 8], [1.0, 2.9]) == [24, 8]
        assert both.repair([8, 8], [1.0, 3.1]) == [8, 16]
        assert both.repair([24, 24], [1.0, 2.9]) == [24, 8]

    def test_worth_of_every_width_tells_down_from_up(self) -> None:
        anatomy = made_up_anatomy([24, 24])
        # From 16, the last channels of layer 0 are worth 5 and the next ones 1; of layer 1, 2 and 3.
        worth = np.array([[0.0, 5.0, 6.0], [0.0, 2.0, 5.0]])
        assert at_most(anatomy, 24 * 30).repair([16, 16], worth) == [16, 8]
        assert at_most(anatomy, 40 * 30).repair([16, 16], worth) == [16, 24]
        # Dense layers lose their last step: 1 against 3.
        assert at_most(anatomy, 40 * 30).repair([24, 24], worth) == [16, 24]

    def test_filling_leaves_what_it_is_given_as_it_is(self) -> None:
        limits = at_most(made_up_anatomy([24, 24]), 40 * 30)
        given = np.array([0, 1])
        assert limits.fill(given, [1.0, 2.0]).tolist() == [1, 2]
        assert given.tolist() == [0, 1]

    def test_a_flat_stretch_is_free(self) -> None:
        # Tiles: 16 channels take as long as 8 in layer 0, nothing else fits.
        flat = limits_of(limit(LimitKind.LATENCY_MS, 45, 5, (20, 20, 40), (20, 30, 40)), widths=(THREE, THREE))
        assert flat.repair([8, 8]) == [16, 8]
        # On the way down, a flat stretch frees nothing: layer 1 gives, however valuable.
        assert flat.repair([16, 16], [0.1, 9.0]) == [16, 8]

    def test_stretches_that_are_flat_everywhere_are_crossed(self) -> None:
        flat = limits_of(limit(LimitKind.LATENCY_MS, 35, 0, (10, 30, 30), (10, 30, 30)), widths=(THREE, THREE))
        assert flat.repair([24, 24], [2.0, 1.0]) == [8, 8]
        wide = replace(flat, limits=(replace(flat.limits[0], most=40),))
        assert wide.repair([24, 24], [2.0, 1.0]) == [24, 8]

    def test_several_limits_hold_at_once(self) -> None:
        memory = limit(LimitKind.MEMORY_BYTES, 160, 100, (10, 20, 30), (10, 20, 30))
        latency = limit(LimitKind.LATENCY_MS, 7, 1, (1, 2, 3), (3, 4, 5))
        both = limits_of(memory, latency, widths=(THREE, THREE))
        # Memory allows both at 24, latency 6 of (1 2 3) + (3 4 5).
        assert both.repair([24, 24], [1.0, 2.0]) == [8, 24]
        assert both.repair([24, 24], [2.0, 1.0]) == [24, 8]
        assert both.binding is latency
        assert not both.allows_everything
        assert both.slack(np.array([0, 2])).tolist() == [20, 0]

    def test_infinite_worth_gives_last(self) -> None:
        anatomy = made_up_anatomy([64, 64, 64])
        assert at_most(anatomy, 80 * 30).repair([64, 64, 64], [1.0, np.inf, 1.0]) == [8, 64, 8]
        assert at_most(anatomy, 60 * 30).repair([64, 64, 64], [1.0, np.inf, 1.0]) == [8, 40, 8]

    def test_limits_near_the_end_of_64_bits(self) -> None:
        huge = limits_of(limit(LimitKind.FLOPS, 2**63 - 1, 0, (2**60, 2**61, 2**61 + 1)), widths=(THREE,))
        assert huge.repair([8]) == [24]
        assert huge.allows_everything


class TestInfeasible:
    def test_the_limit_exceeded_most_is_named_with_the_nearest_value_of_each(self) -> None:
        memory = limit(LimitKind.MEMORY_BYTES, 100, 90, (10, 20, 30), (10, 20, 30))
        latency = limit(LimitKind.LATENCY_MS, 2_000_000, 0, (1_000_001, 2_000_000, 3_000_000), (3_000_000,) * 3)
        disk = limit(LimitKind.DISK_BYTES, 1000, 0, (10, 20, 30), (10, 20, 30))
        with pytest.raises(InfeasibleBudgetError) as caught:
            limits_of(memory, latency, disk, widths=(THREE, THREE)).check()
        error = caught.value
        assert error.binding == "latency_ms"
        # Rounded up to a microsecond, so that asking for it is enough; a limit that holds is as asked.
        assert error.nearest_values == {"memory_bytes": 110, "latency_ms": 4.001, "disk_bytes": 1000}
        assert error.nearest == 4.001
        assert "memory_bytes=110" in error.remedy
        assert "disk" not in error.remedy

    def test_nothing_is_repaired_below_the_narrowest(self) -> None:
        with pytest.raises(InfeasibleBudgetError, match="ffn_parameters = 480"):
            at_most(made_up_anatomy([64, 64]), 15 * 30).repair([8, 8])

    def test_costs_that_fall_are_a_bug(self) -> None:
        with pytest.raises(ValueError, match="grow"):
            limit(LimitKind.LATENCY_MS, 1, 0, (3, 2, 1))

    def test_costs_beyond_64_bits_are_refused(self) -> None:
        anatomy = made_up_anatomy([64, 64])
        with pytest.raises(InputError, match=r"2\*\*62"):
            linear_costs(anatomy, WidthSteps.build(anatomy, round_to=8), [2**55, 2**55])


def test_equal_retention_under_several_limits() -> None:
    widths = (tuple(range(8, 72, 8)), tuple(range(8, 136, 8)))
    memory = limit(LimitKind.MEMORY_BYTES, 10_000, 0, *widths)
    latency = limit(LimitKind.LATENCY_MS, 100, 4, *widths)
    # Half of both are 32 + 64 = 96.
    assert uniform_widths(limits_of(memory, latency, widths=widths)) == [32, 64]


@st.composite
def made_up_limits(draw: st.DrawFn) -> Limits:
    """One to three limits over layers of any width and price, with flat stretches."""
    dense = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    steps = WidthSteps.build(made_up_anatomy(dense), round_to=draw(st.sampled_from([1, 4, 8])))
    limits = []
    kinds = draw(st.lists(st.sampled_from(list(LimitKind)), min_size=1, max_size=3, unique=True))
    for kind in kinds:
        rows = []
        for row in steps.widths:
            grow = draw(st.lists(st.integers(0, 9), min_size=len(row), max_size=len(row)))
            rows.append(np.cumsum(np.array(grow, dtype=np.int64)))
        fixed = draw(st.integers(0, 50))
        least, most = (fixed + sum(int(row[i]) for row in rows) for i in (0, -1))
        limits.append(Limit(kind, draw(st.integers(max(least - 2, 0), most + 2)), fixed, tuple(rows)))
    return Limits(steps, tuple(limits))


@settings(max_examples=300, deadline=None)
@given(made_up_limits(), st.data())
def test_never_exceeded_and_no_layer_can_grow(limits: Limits, data: st.DataObject) -> None:
    num_layers = limits.steps.num_layers
    start = data.draw(st.lists(st.integers(0, 70), min_size=num_layers, max_size=num_layers))
    worth = data.draw(
        st.none() | st.lists(st.floats(-5, 5) | st.just(np.inf), min_size=num_layers, max_size=num_layers)
    )
    if any(x.least > x.most for x in limits.limits):
        with pytest.raises(InfeasibleBudgetError) as caught:
            limits.repair(start, worth)
        assert caught.value.binding in {x.kind.value for x in limits.limits if x.least > x.most}
        with pytest.raises(InfeasibleBudgetError):
            uniform_widths(limits)
        return
    for widths in (limits.repair(start, worth), uniform_widths(limits)):
        indices = [row.tolist().index(w) for row, w in zip(limits.steps.widths, widths, strict=True)]

        def cost(x: Limit, indices: list[int]) -> int:
            return x.fixed + sum(int(row[i]) for row, i in zip(x.costs, indices, strict=True))

        assert all(cost(x, indices) <= x.most for x in limits.limits)
        for layer, index in enumerate(indices):
            if index + 1 < len(limits.steps.widths[layer]):
                wider = [i + (at == layer) for at, i in enumerate(indices)]
                assert any(cost(x, wider) > x.most for x in limits.limits)


def test_parameter_limits_count_biases_of_cut_layers() -> None:
    anatomy = made_up_anatomy([16, 16], per_channel=30)  # D = 10
    costs = parameter_limits(anatomy, WidthSteps.build(anatomy, round_to=8), 1000, compensates=True).limits[0].costs
    assert [row.tolist() for row in costs] == [[250, 480], [250, 480]]
