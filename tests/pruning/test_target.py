"""Sparsities to budgets: exact, refused where they cannot be met."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import InfeasibleTargetError, InputError
from pruning.repair import repair_widths
from pruning.target import Scope, achieved_sparsity, ffn_parameter_budget
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


@given(
    widths=st.lists(st.integers(1, 40).map(lambda n: n * 8), min_size=1, max_size=6),
    sparsity=st.floats(0, 0.99),
    round_to=st.sampled_from([1, 4, 8, 16]),
    scope=st.sampled_from(list(Scope)),
    data=st.data(),
)
def test_repaired_widths_meet_the_target_and_waste_less_than_a_step(
    widths: list[int], sparsity: float, round_to: int, scope: Scope, data: st.DataObject
) -> None:
    anatomy = made_up_anatomy(widths)
    try:
        budget = ffn_parameter_budget(anatomy, sparsity, scope, round_to=round_to)
    except InfeasibleTargetError:
        return
    rough = [data.draw(st.integers(1, w)) for w in widths]
    repaired = repair_widths(anatomy, rough, budget, round_to=round_to)
    assert all(w % round_to == 0 or w == dense for w, dense in zip(repaired, widths, strict=True))
    assert achieved_sparsity(anatomy, repaired)[scope] >= sparsity - 1e-9
    left = budget - sum(repaired) * 30
    assert left >= 0
    for width, dense in zip(repaired, widths, strict=True):
        if width < dense:
            assert left < min(round_to, dense - width) * 30


def test_repair_takes_from_the_layer_worth_least_and_gives_to_the_one_worth_most() -> None:
    anatomy = made_up_anatomy([64, 64, 64])
    assert repair_widths(anatomy, [32, 32, 32], 88 * 30, round_to=8, marginal=[1, 3, 2]) == [24, 32, 32]
    assert repair_widths(anatomy, [32, 32, 32], 107 * 30, round_to=8, marginal=[1, 3, 2]) == [32, 40, 32]


def test_repair_refuses_a_budget_below_the_minimum() -> None:
    with pytest.raises(InfeasibleTargetError, match="8 channels"):
        repair_widths(made_up_anatomy([64, 64]), [8, 8], 15 * 30, round_to=8)
