"""Targets of latency: shares of what the dense model takes on a device."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mcts.settings import SearchSettings
from mcts.targets import DEFAULT_LATENCY_SHARES, AllowedLatency, LatencyTargets, latency_limits
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.errors import InfeasibleBudgetError, InfeasibleTargetError, InputError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName
from pruning.planning.latency_model import LatencyModel
from pruning.planning.prices import LatencyPrice
from pruning.planning.scope import Scope
from pruning.planning.workload import Workload
from tests.pruning.made_up_devices import made_up_profile
from tests.tiny_models import tiny_model

SHORT = Workload(prompt_tokens=12, output_tokens=4)
JOINT = SearchSettings(
    sparsities=(0.3,),
    scope=Scope.DECODER,
    axes=SpaceName.ALL,
    num_levels=3,
    latency=LatencyTargets("bench", (0.9, 0.8), SHORT),
)


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    return anatomy_of(tiny_model("llama"))


@pytest.fixture(scope="module")
def latency(anatomy: ModelAnatomy) -> LatencyModel:
    """Of a device that was measured."""
    return latency_model(profiled_device(made_up_profile("bench", anatomy=anatomy, attention=True)), anatomy, SHORT)


def test_they_come_after_the_sparsities_and_limit_what_a_request_takes(
    anatomy: ModelAnatomy, latency: LatencyModel
) -> None:
    sparsity, *timed = JOINT.resolve_targets(anatomy, latency)
    assert (sparsity.sparsity, sparsity.latency) == (0.3, None)
    price = LatencyPrice(anatomy, latency)
    rng = np.random.default_rng(0)
    for target, share in zip(timed, (0.9, 0.8), strict=True):
        assert target.label.startswith(f"latency {share} (bench: ")
        assert target.label.endswith(" ms for 1 x 12 + 4 tokens)")
        assert target.latency is not None
        assert share * price.total - 1 < target.latency.most_ns <= share * price.total
        assert target.budget == anatomy.decoder_parameters
        limits = JOINT.limits(anatomy, target, latency)
        for _ in range(20):
            choice = rng.integers(0, np.array(limits.space.top) + 1)
            cost = price.cost(limits.space.architecture(choice.tolist()))
            assert limits.slack(choice).tolist() == [target.latency.most_ns - cost]


def test_what_no_choice_keeps_to_is_no_limit(anatomy: ModelAnatomy, latency: LatencyModel) -> None:
    space = JOINT.space(anatomy)
    least = LatencyPrice(anatomy, latency).cost(space.architecture(space.bottom))
    latency_limits(anatomy, space, AllowedLatency(0.1, least, 10 * least), latency)
    with pytest.raises(InfeasibleBudgetError):
        latency_limits(anatomy, space, AllowedLatency(0.1, least - 1, 10 * least), latency)


def asked(axes: SpaceName, *shares: float) -> SearchSettings:
    targets = LatencyTargets("bench", shares or None, SHORT)
    return SearchSettings(scope=Scope.DECODER, axes=axes, num_levels=3, latency=targets)


def test_what_is_too_fast_for_a_space_is_named_with_the_nearest(anatomy: ModelAnatomy, latency: LatencyModel) -> None:
    with pytest.raises(InfeasibleTargetError, match=r"latency 0.01 .*fastest configuration takes .* ms") as caught:
        asked(SpaceName.ATTENTION, 0.99, 0.01).resolve_targets(anatomy, latency)
    nearest = caught.value.nearest
    assert nearest is not None
    (reached,) = asked(SpaceName.ATTENTION, nearest).resolve_targets(anatomy, latency)
    assert reached.latency is not None
    with pytest.raises(InfeasibleTargetError):
        asked(SpaceName.ATTENTION, nearest - 2e-6).resolve_targets(anatomy, latency)


@pytest.mark.parametrize("axes", [SpaceName.FFN, SpaceName.ALL])
def test_what_is_too_fast_for_a_space_is_told_how_fast_each_space_can_be(
    anatomy: ModelAnatomy, latency: LatencyModel, axes: SpaceName
) -> None:
    settings = replace(asked(axes, 1e-7), scope=Scope.FFN if axes is SpaceName.FFN else Scope.DECODER)
    with pytest.raises(InfeasibleTargetError) as caught:
        settings.resolve_targets(anatomy, latency)
    assert caught.value.spaces.keys() == {name.value for name in SPACES_OF_UNITS}
    assert caught.value.spaces[axes.value].nearest == caught.value.nearest
    for name, reach in caught.value.spaces.items():
        assert reach.nearest is not None
        assert f"({reach.nearest:g}) in space '{name}'" in caught.value.remedy
        assert asked(SpaceName(name), reach.nearest).resolve_targets(anatomy, latency)
        with pytest.raises(InfeasibleTargetError):
            asked(SpaceName(name), reach.nearest - 2e-6).resolve_targets(anatomy, latency)


@pytest.mark.parametrize(("least", "dense"), [(452, 20_000), (123_457, 1_000_001), (7, 9), (1, 3)])
def test_the_nearest_share_is_feasible_to_the_nanosecond(
    monkeypatch: pytest.MonkeyPatch, anatomy: ModelAnatomy, latency: LatencyModel, least: int, dense: int
) -> None:
    monkeypatch.setattr(LatencyPrice, "total", dense)
    monkeypatch.setattr(LatencyPrice, "cost", lambda *_: least)
    with pytest.raises(InfeasibleTargetError) as caught:
        asked(SpaceName.ALL, 1e-7).resolve_targets(anatomy, latency)
    assert caught.value.nearest is not None
    assert math.floor(caught.value.nearest * dense) >= least
    assert math.floor((caught.value.nearest - 2e-6) * dense) < least


def test_a_space_that_makes_nothing_faster_has_no_nearest(
    monkeypatch: pytest.MonkeyPatch, anatomy: ModelAnatomy, latency: LatencyModel
) -> None:
    monkeypatch.setattr(LatencyPrice, "cost", lambda price, _: price.total)
    with pytest.raises(InfeasibleTargetError, match="Nothing is faster here") as caught:
        asked(SpaceName.ATTENTION).resolve_targets(anatomy, latency)
    assert caught.value.nearest is None


def test_default_shares_are_those_that_the_space_reaches(anatomy: ModelAnatomy, latency: LatencyModel) -> None:
    price = LatencyPrice(anatomy, latency)
    for axes in (SpaceName.FFN, SpaceName.ATTENTION, SpaceName.ALL):
        settings = replace(asked(axes), scope=Scope.FFN if axes is SpaceName.FFN else Scope.DECODER)
        space = settings.space(anatomy)
        least = price.cost(space.architecture(space.bottom)) / price.total
        expected = [share for share in DEFAULT_LATENCY_SHARES if share >= least]
        if expected:
            found = settings.resolve_targets(anatomy, latency)
            assert [target.latency.share for target in found if target.latency is not None] == expected
        else:
            with pytest.raises(InfeasibleTargetError):
                settings.resolve_targets(anatomy, latency)


def test_settings_say_them_and_those_without_say_what_they_always_said() -> None:
    document = json.loads(json.dumps(JOINT.to_dict()))
    assert document["latency"]["shares"] == [0.9, 0.8]
    assert SearchSettings.from_dict(document) == JOINT
    assert "latency" not in SearchSettings(sparsities=(0.5,)).to_dict()
    usual = replace(JOINT, latency=LatencyTargets("bench"))
    assert SearchSettings.from_dict(json.loads(json.dumps(usual.to_dict()))) == usual


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"device": "l4", "shares": [0.5, 1.0], "workload": {}}, "between 0 and 1"),
        ({"device": "l4", "shares": [0.5, 0.50000001], "workload": {}}, "each target once .*0.5 again"),
        ({"device": "l4", "shares": [], "workload": {}}, "Give one at least"),
        ({"device": "", "shares": [0.5], "workload": {}}, "of a device"),
        ({"device": "l4", "shares": [0.5]}, "a workload"),
        ({"device": "l4", "shares": [0.5], "workload": {"batch": 0}}, "a workload"),
        ({"device": "l4", "shares": [0.5], "workload": {}, "more": 1}, "a workload"),
        (7, "a workload"),
    ],
)
def test_refused(targets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSettings.from_dict({"sparsities": [0.5], "latency": targets})


@pytest.mark.parametrize("axes", [SpaceName.BITS, SpaceName.ALL_BITS, SpaceName.DENSITY])
def test_they_are_of_units(axes: SpaceName) -> None:
    with pytest.raises(InputError, match=f"where units may change .*'{axes}'"):
        SearchSettings(sparsities=(0.5,), scope=Scope.DECODER, axes=axes, latency=LatencyTargets("l4"))


def test_nothing_is_made_concrete_without_what_prices_it(anatomy: ModelAnatomy) -> None:
    with pytest.raises(ValueError, match="need what prices them"):
        JOINT.resolve_targets(anatomy)


def test_a_device_without_an_attention_ladder_prices_ffn_widths_alone(anatomy: ModelAnatomy) -> None:
    old = latency_model(profiled_device(made_up_profile("old", anatomy=anatomy, attention=False)), anatomy, SHORT)
    found = replace(asked(SpaceName.FFN, 0.95), scope=Scope.FFN).resolve_targets(anatomy, old)
    assert len(found) == 1
    with pytest.raises(InputError, match="attention"):
        asked(SpaceName.ALL, 0.9).resolve_targets(anatomy, old)
