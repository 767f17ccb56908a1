"""Settings: what is refused, targets made concrete, JSON there and back."""

import json
from typing import Any

import pytest

from mcts.settings import SearchMethod, SearchSettings
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.scope import Scope
from tests.mcts.landscapes import make_anatomy


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
        ({"sparsities": 0.5}, "wrong type"),
        ({"sparsities": [0.5], "simulations": 9}, "unknown search setting .*simulations.*num_evaluations"),
    ],
)
def test_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSettings.from_dict(broken)


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
