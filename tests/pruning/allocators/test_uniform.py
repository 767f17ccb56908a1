"""Equal retention, exact under the budget."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.allocation import architecture_near
from pruning.allocators.uniform import evenness, uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.errors import InfeasibleTargetError
from pruning.planning.limits import LimitKind, Limits
from tests.pruning.made_up import at_most
from tests.pruning.made_up_limits import ladders, limit


def make_anatomy(*layers: tuple[int, int]) -> ModelAnatomy:
    """Layers given as (ffn_width, ffn_parameters_per_channel)."""
    decoder = tuple(DecoderLayer(i, w, 4, 2, 8, p, w * p + 10) for i, (w, p) in enumerate(layers))
    return ModelAnatomy("llava", "llama", 32, 50, decoder, sum(x.parameters for x in decoder), "F32", "0" * 64)


def uniform_widths(limits: Limits) -> list[int]:
    return limits.units_of(uniform_choice(limits))


def test_equal_layers() -> None:
    anatomy = make_anatomy(*[(64, 3)] * 4)
    assert uniform_widths(at_most(anatomy, 4 * 64 * 3 // 2)) == [32, 32, 32, 32]
    # One channel step more pays for one layer; the first gets it.
    assert uniform_widths(at_most(anatomy, 4 * 64 * 3 // 2 + 24)) == [40, 32, 32, 32]
    assert uniform_widths(at_most(anatomy, 10**9)) == [64, 64, 64, 64]


def test_unequal_layers_keep_the_same_fraction() -> None:
    anatomy = make_anatomy((64, 3), (128, 3), (32, 6))
    assert uniform_widths(at_most(anatomy, anatomy.ffn_parameters // 4)) == [16, 32, 8]


def test_dense_width_that_is_no_multiple() -> None:
    anatomy = make_anatomy((30, 1), (30, 1))
    assert uniform_widths(at_most(anatomy, 60)) == [30, 30]
    assert uniform_widths(at_most(anatomy, 59)) == [30, 24]


def test_a_layer_that_is_skipped_whatever_is_chosen() -> None:
    space = ladders([0], [8, 16, 24])
    limits = Limits(space, (limit(LimitKind.FFN_PARAMETERS, 17, 0, [0], [8, 16, 24]),))
    assert uniform_widths(limits) == [0, 16]
    assert evenness(space)[0].tolist() == [0, 0, 0]
    near = architecture_near(limits, [math.inf, 24.0])
    assert near.units(Sublayer.FFN, space.dense_units.tolist()) == (0, 16)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(8, 200), st.integers(1, 9)), min_size=1, max_size=6),
    st.floats(0.05, 1.0),
)
def test_under_the_budget_and_no_step_left(layers: list[tuple[int, int]], retention: float) -> None:
    anatomy = make_anatomy(*layers)
    floor = sum(min(8, w) * p for w, p in layers)
    budget = max(floor, int(anatomy.ffn_parameters * retention))
    widths = uniform_widths(at_most(anatomy, budget))
    left = budget - sum(w * p for w, (_, p) in zip(widths, layers, strict=True))
    assert left >= 0
    assert all(w == full or min(8, full - w) * p > left for w, (full, p) in zip(widths, layers, strict=True))


def test_infeasible() -> None:
    with pytest.raises(InfeasibleTargetError, match="the smallest plan needs ffn_parameters = 48"):
        uniform_widths(at_most(make_anatomy((64, 3), (64, 3)), 47))


def test_levels_of_equal_layers() -> None:
    rows = ((10, 20, 30, 40),) * 3

    def levels(budget: int) -> list[int]:
        return list(uniform_choice(Limits(ladders(*rows), (limit(LimitKind.FFN_PARAMETERS, budget, 0, *rows),))))

    assert levels(60) == [1, 1, 1]
    assert levels(75) == [2, 1, 1]
    assert levels(30) == [0, 0, 0]
    assert levels(500) == [3, 3, 3]
    with pytest.raises(InfeasibleTargetError):
        levels(29)
