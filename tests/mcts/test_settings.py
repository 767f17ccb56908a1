"""Settings: what is refused, targets made concrete, JSON there and back."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mcts.settings import SearchMethod, SearchSettings
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName
from pruning.planning.scope import Scope
from tests.mcts.landscapes import make_anatomy
from tests.tiny_models import tiny_model


def test_json_round_trip() -> None:
    given = SearchSettings(sparsities=(0.5, 0.25), budgets=(700,), scope=Scope.DECODER, method=SearchMethod.RANDOM)
    assert SearchSettings.from_dict(json.loads(json.dumps(given.to_dict()))) == given


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "at least one target"),
        ({"sparsities": [0.5, 0.3, 0.5]}, r"each target once \(got sparsity 0.5 again\)"),
        ({"sparsities": [0.5, 0.50000001]}, "each target once"),
        ({"sparsities": [0.5], "budgets": [700, 700]}, "budget 700 again"),
        ({"sparsities": [1.0]}, r"sparsity must be a number in \[0, 1\)"),
        ({"sparsities": [0.5], "num_evaluations": 0}, "num_evaluations must be an integer of at least 1"),
        ({"sparsities": [0.5], "num_simulations": -1}, "num_simulations must be an integer of at least 0"),
        ({"sparsities": [0.5], "parallel_leaves": 1.5}, "parallel_leaves must be an integer"),
        ({"sparsities": [0.5], "num_levels": 1}, "num_levels must be an integer of at least 2"),
        ({"sparsities": [0.5], "temperature": 0}, "temperature must be a positive number"),
        ({"sparsities": [0.5], "c_puct": float("nan")}, "c_puct must be a positive number"),
        ({"sparsities": [0.5], "prior_share": 1.5}, r"prior_share must be a fraction in \[0, 1\]"),
        ({"budgets": [True]}, "budget must be a positive number"),
        ({"sparsities": [0.5], "scope": "vision"}, "wrong type"),
        ({"sparsities": [0.5], "method": "annealing"}, "wrong type"),
        ({"sparsities": [0.5], "axes": "heads"}, "wrong type"),
        ({"sparsities": 0.5}, "wrong type"),
        ({"sparsities": [0.5], "simulations": 9}, "unknown search setting .*simulations.*num_evaluations"),
    ],
)
def test_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSettings.from_dict(broken)


def test_a_search_of_ffn_widths_says_what_it_always_said() -> None:
    assert "axes" not in SearchSettings(sparsities=(0.5,)).to_dict()
    joint = SearchSettings(sparsities=(0.5,), scope=Scope.DECODER, axes=SpaceName.ALL)
    assert joint.to_dict()["axes"] == "all"
    assert SearchSettings.from_dict(json.loads(json.dumps(joint.to_dict()))) == joint


def test_other_spaces_count_the_decoders_parameters() -> None:
    anatomy = anatomy_of(tiny_model("llama"))
    settings = SearchSettings(sparsities=(0.5,), budgets=(7000,), scope=Scope.DECODER, axes=SpaceName.ALL, num_levels=3)
    half, fixed = settings.resolve_targets(anatomy)
    assert half.budget == anatomy.decoder_parameters // 2
    assert fixed.budget == 7000
    limits = settings.limits(anatomy, half)
    removed = anatomy.decoder_parameters - half.budget
    assert limits.limits[0].most == anatomy.total_parameters - removed
    of_model = replace(settings, scope=Scope.MODEL, sparsities=(0.1,), budgets=()).resolve_targets(anatomy)[0]
    assert anatomy.decoder_parameters - of_model.budget == -(-anatomy.total_parameters // 10)
    with pytest.raises(InputError, match=r"a sparsity of FFN parameters .*'ffn'.*'decoder' or 'model'"):
        replace(settings, scope=Scope.FFN).resolve_targets(anatomy)


@pytest.mark.parametrize("axes", [SpaceName.ATTENTION, SpaceName.LAYERS, SpaceName.ALL])
def test_what_is_out_of_reach_of_a_space_is_named_with_the_nearest(axes: SpaceName) -> None:
    anatomy = anatomy_of(tiny_model("llama"))
    settings = SearchSettings(sparsities=(0.99,), scope=Scope.DECODER, axes=axes, num_levels=3)
    with pytest.raises(InfeasibleTargetError, match=r"sparsity 0.99 \(decoder\).*decoder parameters") as caught:
        settings.resolve_targets(anatomy)
    assert caught.value.nearest is not None
    assert all(f"in space '{name}'" in str(caught.value) for name in SPACES_OF_UNITS)
    (reached,) = replace(settings, sparsities=(caught.value.nearest,)).resolve_targets(anatomy)
    assert settings.limits(anatomy, reached).slack(settings.space(anatomy).bottom).min() >= 0


def test_targets_in_order() -> None:
    anatomy = make_anatomy([64, 64])  # 384 FFN parameters
    settings = SearchSettings(sparsities=(0.75, 0.25), budgets=(200,), num_levels=8)
    targets = settings.resolve_targets(anatomy)
    assert [(t.budget, t.sparsity) for t in targets] == [(96, 0.75), (288, 0.25), (200, None)]
    assert [t.label for t in targets] == ["sparsity 0.75 (ffn)", "sparsity 0.25 (ffn)", "budget 200"]


def test_an_infeasible_target_is_named_with_the_nearest() -> None:
    anatomy = make_anatomy([64, 64])
    # The lowest of four levels is 16 of 64: 75% is the most.
    with pytest.raises(InfeasibleTargetError, match=r"sparsity 0.8 \(ffn\)") as caught:
        SearchSettings(sparsities=(0.5, 0.8), num_levels=4).resolve_targets(anatomy)
    assert caught.value.nearest == 0.75
    with pytest.raises(InfeasibleTargetError, match="budget 95") as caught:
        SearchSettings(budgets=(96, 95), num_levels=4).resolve_targets(anatomy)
    assert caught.value.nearest == 96
