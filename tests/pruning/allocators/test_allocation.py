"""From real-valued wishes to widths under a budget."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.allocation import architecture_near
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.errors import InfeasibleBudgetError
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.prices import LinearPrice, SiteCost
from tests.pruning.made_up import at_most, made_up_anatomy


def widths_near(limits: Limits, wished: Sequence[float]) -> list[int]:
    return list(architecture_near(limits, wished).units(Sublayer.FFN, limits.space.dense_units.tolist()))


def test_rounding_gives_the_rest_to_the_layers_furthest_below_their_wish() -> None:
    anatomy = made_up_anatomy([64] * 4, per_channel=1)
    # Rounded down: 24, 24, 32, 8 = 88. Of 24 channels left, 7 + 6 + 5 were wished for: one step for each of those.
    wished = [30.0, 31.0, 37.0, 8.0]
    assert widths_near(at_most(anatomy, 88 + 24), wished) == [32, 32, 40, 8]
    assert widths_near(at_most(anatomy, 88 + 16), wished) == [32, 32, 32, 8]
    assert widths_near(at_most(anatomy, 88 + 8), wished) == [24, 32, 32, 8]


def test_what_is_wished_beyond_the_budget_is_taken_where_most_is_too_much() -> None:
    anatomy = made_up_anatomy([64] * 3, per_channel=1)
    # Layer 2 wishes for nothing but keeps a step; the others are at their wishes, and give alternately.
    assert widths_near(at_most(anatomy, 72), [40.0, 40.0, 0.0]) == [32, 32, 8]


def test_an_infinite_wish_gives_last() -> None:
    anatomy = made_up_anatomy([64] * 3, per_channel=1)
    assert widths_near(at_most(anatomy, 80), [math.inf, 64.0, 64.0]) == [64, 8, 8]
    assert widths_near(at_most(anatomy, 60), [math.inf, 64.0, 64.0]) == [40, 8, 8]


def with_biases(anatomy: ModelAnatomy, biases: Sequence[int], budget: int) -> Limits:
    """At most `budget` parameters, of which a layer that is cut costs `biases` [L] more."""
    sites = {
        Site(x.index, Sublayer.FFN): SiteCost(x.ffn_parameters_per_channel, added=bias)
        for x, bias in zip(anatomy.layers, biases, strict=True)
    }
    space = ffn_widths(anatomy, round_to=8)
    price = LinearPrice(LimitKind.FFN_PARAMETERS, space.dense, sites, 0)
    return Limits(space, (price.limit(space, budget),))


def test_a_cut_layer_pays_for_its_bias_and_a_dense_one_does_not() -> None:
    anatomy = made_up_anatomy([64, 64], per_channel=1)
    biases = [5, 5]
    # 64 + 40 + 5 = 109; a step more in layer 1 would be 117.
    assert widths_near(with_biases(anatomy, biases, 116), [64, 43]) == [64, 40]
    assert widths_near(with_biases(anatomy, biases, 117), [64, 43]) == [64, 48]
    # The last step to dense costs 8 - 5.
    assert widths_near(with_biases(anatomy, biases, 64 + 56 + 5 + 3), [64, 56]) == [64, 64]
    with pytest.raises(InfeasibleBudgetError) as caught:
        widths_near(with_biases(anatomy, biases, 25), [64, 64])
    assert caught.value.nearest == 26


def test_where_the_last_channels_are_cheaper_than_the_bias_the_layer_is_dense() -> None:
    anatomy = made_up_anatomy([10], per_channel=1)
    # 8 and a bias of 5 are 13, more than all 10 channels.
    for budget in (10, 12, 13):
        assert widths_near(with_biases(anatomy, [5], budget), [8.0]) == [10 if budget < 13 else 8]
    with pytest.raises(InfeasibleBudgetError) as caught:
        with_biases(anatomy, [5], 9)
    assert caught.value.nearest == 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(8, 100), st.integers(0, 3), st.floats(0, 120)), min_size=1, max_size=6),
    st.floats(0.2, 1.0),
)
def test_under_the_budget_and_no_step_left(layers: list[tuple[int, int, float]], share: float) -> None:
    anatomy = made_up_anatomy([w for w, _, _ in layers], per_channel=3)
    biases = [bias for _, bias, _ in layers]
    budget = max(int(anatomy.ffn_parameters * share), sum(min(8, w) * 3 + b for w, b, _ in layers))
    widths = widths_near(with_biases(anatomy, biases, budget), [x for _, _, x in layers])

    def cost(widths: list[int]) -> int:
        return sum(w * 3 + (b if w < full else 0) for w, (full, b, _) in zip(widths, layers, strict=True))

    assert cost(widths) <= budget
    for index, (full, _, _) in enumerate(layers):
        assert min(8, full) <= widths[index] <= full
        assert widths[index] == full or widths[index] % 8 == 0
        step = min(8, full - widths[index])
        assert step == 0 or cost([w + step * (i == index) for i, w in enumerate(widths)]) > budget
