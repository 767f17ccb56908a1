"""Sparsities to budgets: exact, refused where they cannot be met."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.uniform import evenness, uniform_choice
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.scope import Scope
from pruning.planning.target import achieved_sparsity, ffn_parameter_budget, limits_for_sparsity
from tests.pruning.made_up import made_up_anatomy


def test_half_of_the_ffns_is_half_of_their_parameters() -> None:
    anatomy = made_up_anatomy([64, 64], per_channel=30)
    assert ffn_parameter_budget(anatomy, 0.5, Scope.FFN, round_to=8) == 64 * 30


def test_wider_scopes_take_more_from_the_ffns() -> None:
    anatomy = made_up_anatomy([64, 64], per_channel=30, other=1000)
    # ffn 3840, decoder 5840, model 10840 parameters.
    assert ffn_parameter_budget(anatomy, 0.25, Scope.DECODER, round_to=8) == 3840 - 1460
    assert ffn_parameter_budget(anatomy, 0.25, Scope.MODEL, round_to=8) == 3840 - 2710


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5, math.nan, math.inf, True, "0.5", None])
def test_a_sparsity_outside_its_range_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        ffn_parameter_budget(made_up_anatomy([64]), bad, Scope.FFN, round_to=8)


def test_an_infeasible_sparsity_names_the_nearest_one_and_that_one_works() -> None:
    anatomy = made_up_anatomy([64, 48])
    with pytest.raises(InfeasibleTargetError) as caught:
        ffn_parameter_budget(anatomy, 0.95, Scope.FFN, round_to=8)
    nearest = caught.value.nearest
    assert nearest == pytest.approx(1 - 16 / 112, abs=1e-6)
    assert nearest is not None
    assert ffn_parameter_budget(anatomy, nearest, Scope.FFN, round_to=8) >= 16 * 30


@settings(deadline=None)
@given(
    widths=st.lists(st.integers(1, 40).map(lambda n: n * 8), min_size=1, max_size=6),
    sparsity=st.floats(0, 0.99),
    round_to=st.sampled_from([1, 4, 8, 16]),
    scope=st.sampled_from(list(Scope)),
    data=st.data(),
)
def test_fitted_widths_meet_the_target_and_waste_less_than_a_step(
    widths: list[int], sparsity: float, round_to: int, scope: Scope, data: st.DataObject
) -> None:
    anatomy = made_up_anatomy(widths)
    try:
        limits = limits_for_sparsity(anatomy, ffn_widths(anatomy, round_to=round_to), sparsity, scope)
    except InfeasibleTargetError:
        return
    rough = [data.draw(st.integers(1, w)) for w in widths]
    space = limits.space
    repaired = space.units_of(limits.fit(space.at_most(rough), evenness(space)))
    assert all(w % round_to == 0 or w == dense for w, dense in zip(repaired, widths, strict=True))
    assert achieved_sparsity(anatomy, anatomy.architecture(repaired))[scope] >= sparsity - 1e-9
    left = limits.limits[0].most - sum(repaired) * 30
    assert left >= 0
    for width, dense in zip(repaired, widths, strict=True):
        if width < dense:
            assert left < min(round_to, dense - width) * 30


def test_a_target_counts_the_biases_that_are_added() -> None:
    anatomy = made_up_anatomy([64, 64], per_channel=30)  # D = 10
    space = ffn_widths(anatomy, round_to=8)
    limits = limits_for_sparsity(anatomy, space, 0.5, Scope.FFN, compensates=True)
    # 1920 parameters may stay: 64 channels, less a channel's worth of biases, in steps of 8.
    assert sum(space.units_of(uniform_choice(limits))) == 56
    with pytest.raises(InfeasibleTargetError) as caught:
        limits_for_sparsity(anatomy, space, 0.875, Scope.FFN, compensates=True)
    assert caught.value.nearest == pytest.approx(1 - (16 * 30 + 20) / 3840, abs=1e-6)


def test_tensor_parallelism_is_in_the_nearest_target() -> None:
    anatomy = made_up_anatomy([64, 64])
    with pytest.raises(InfeasibleTargetError, match="at least 16 channels") as caught:
        limits_for_sparsity(anatomy, ffn_widths(anatomy, round_to=16, tp_size=4), 0.8, Scope.FFN)
    assert caught.value.nearest == 0.75
