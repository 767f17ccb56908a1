"""Targets of time: shares of what the dense model takes on a device."""

import json
from typing import Any

import pytest

from mcts.settings import SearchSettings
from mcts.time_targets import DEFAULT_SHARES, TimeTargets
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.devices.catalogue import DEVICES
from pruning.devices.latency import latency_model
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.latency_model import LatencyModel
from pruning.planning.prices import LatencyPrice
from pruning.planning.scope import Scope
from pruning.planning.workload import Workload
from tests.tiny_models import tiny_model

SHORT = Workload(prompt_tokens=32, output_tokens=8)
JOINT = SearchSettings(
    sparsities=(0.3,),
    scope=Scope.DECODER,
    axes=SpaceName.ALL,
    num_levels=3,
    time=TimeTargets("l4", (0.7, 0.4), SHORT),
)


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    return anatomy_of(tiny_model("llama"))


@pytest.fixture(scope="module")
def latency(anatomy: ModelAnatomy) -> LatencyModel:
    return latency_model(DEVICES["l4"], anatomy, SHORT)


def test_they_come_after_the_sparsities_and_limit_what_a_request_takes(
    anatomy: ModelAnatomy, latency: LatencyModel
) -> None:
    sparsity, *timed = JOINT.resolve_targets(anatomy, latency)
    assert (sparsity.sparsity, sparsity.share) == (0.3, None)
    price = LatencyPrice(anatomy, latency)
    for target, share in zip(timed, (0.7, 0.4), strict=True):
        assert target.label == f"time {share} (l4, 1 x 32 + 8 tokens)"
        assert (target.sparsity, target.share) == (None, share)
        limits = JOINT.limits(anatomy, target, latency)
        space = limits.space
        assert (limits.slack(space.bottom) >= 0).all()
        assert (limits.slack(space.top) < 0).all()
        # What is said to fit does, by the price itself; and one nanosecond less than the bottom would not.
        assert price.cost(space.architecture(space.bottom)) <= target.budget <= share * price.total


def test_what_is_too_fast_for_a_space_is_named_with_the_nearest(anatomy: ModelAnatomy, latency: LatencyModel) -> None:
    def asked(share: float) -> SearchSettings:
        time = TimeTargets("l4", (share,), SHORT)
        return SearchSettings(scope=Scope.DECODER, axes=SpaceName.ATTENTION, num_levels=3, time=time)

    with pytest.raises(InfeasibleTargetError, match=r"time 0.01 .*fastest configuration takes .* ms of") as caught:
        asked(0.01).resolve_targets(anatomy, latency)
    nearest = caught.value.nearest
    assert nearest is not None
    (reached,) = asked(nearest).resolve_targets(anatomy, latency)
    with pytest.raises(InfeasibleTargetError):
        asked(nearest - 2e-6).resolve_targets(anatomy, latency)
    assert reached.share == nearest


def test_settings_say_them_and_those_without_say_what_they_always_said() -> None:
    document = json.loads(json.dumps(JOINT.to_dict()))
    assert document["time"]["shares"] == [0.7, 0.4]
    assert SearchSettings.from_dict(document) == JOINT
    assert "time" not in SearchSettings(sparsities=(0.5,)).to_dict()
    assert TimeTargets("l4").shares == DEFAULT_SHARES


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ({"device": "l4", "shares": [0.5, 1.0], "workload": {}}, "between 0 and 1"),
        ({"device": "l4", "shares": [0.5, 0.5], "workload": {}}, "each target once"),
        ({"device": "l4", "shares": [], "workload": {}}, "Give one at least"),
        ({"device": "", "shares": [0.5], "workload": {}}, "of a device"),
        ({"device": "l4", "shares": [0.5]}, "a workload"),
        ({"device": "l4", "shares": [0.5], "workload": {"batch": 0}}, "a workload"),
        ({"device": "l4", "shares": [0.5], "workload": {}, "more": 1}, "a workload"),
        (7, "a workload"),
    ],
)
def test_refused(time: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSettings.from_dict({"sparsities": [0.5], "time": time})


@pytest.mark.parametrize("axes", [SpaceName.BITS, SpaceName.ALL_BITS, SpaceName.DENSITY])
def test_they_are_of_units(axes: SpaceName) -> None:
    with pytest.raises(InputError, match=f"where units may change .*'{axes}'"):
        SearchSettings(sparsities=(0.5,), scope=Scope.DECODER, axes=axes, time=TimeTargets("l4"))


def test_nothing_is_made_concrete_without_what_prices_it(anatomy: ModelAnatomy) -> None:
    with pytest.raises(ValueError, match="need what prices them"):
        JOINT.resolve_targets(anatomy)
