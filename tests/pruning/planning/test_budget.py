"""Hardware budgets as limits: bounds of the exact costs, tight to a header's digits."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pruning.allocators.uniform import evenness
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.checkpoints.safetensors_layout import plan_shards, safetensors_file_bytes, tensor_bytes
from pruning.devices.catalogue import DEVICES
from pruning.devices.latency import latency_model
from pruning.errors import InfeasibleBudgetError, InputError
from pruning.planning.added_biases import pruned_tensors
from pruning.planning.budget import header_bytes_bound, latency_limit, limits_for_budget
from pruning.planning.cost import achieved_costs
from pruning.planning.demand import Demand
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.latency_model import LatencyModel, LatencySource
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.make_plan import exceeded_limits
from pruning.planning.plan import PlanTarget
from pruning.planning.prices import LatencyPrice
from pruning.planning.space import Space
from pruning.planning.workload import Budget, Workload
from tests.pruning.made_up import made_up_anatomy
from tests.pruning.made_up_limits import cost_of, draw_choice, draw_worth

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
WORKLOAD = Workload(batch=2, prompt_tokens=9, output_tokens=4)
FIELDS = ("memory_bytes", "flops", "disk_bytes", "latency_ms")


def costs_of(
    anatomy: ModelAnatomy, widths: Sequence[int], *, compensates: bool = False, latency: LatencyModel | None = None
) -> dict[str, Any]:
    achieved = achieved_costs(anatomy, anatomy.architecture(widths), WORKLOAD, compensates=compensates, latency=latency)
    return {name: getattr(achieved, name) for name in FIELDS}


def budget_of(**limits: Any) -> Budget:
    return Budget(**limits, **WORKLOAD.model_dump())


def narrowest(space: Space) -> tuple[int, ...]:
    return space.units_of(space.bottom)


def fitted(limits: Limits, start: Sequence[int]) -> tuple[int, ...]:
    """Widths [L] near `start` [L], evenly."""
    return limits.space.units_of(limits.fit(limits.space.at_most(start), evenness(limits.space)))


@QUICK
@given(data=st.data(), compensates=st.booleans())
def test_tables_are_the_exact_costs_but_for_header_digits(
    anatomy: ModelAnatomy, data: st.DataObject, compensates: bool
) -> None:
    space = ffn_widths(anatomy, round_to=data.draw(st.sampled_from([1, 8])))
    latency = latency_model(DEVICES["l4"], anatomy, WORKLOAD)
    dense = costs_of(anatomy, [x.ffn_width for x in anatomy.layers], latency=latency)
    budget = budget_of(**{name: cost * 2 for name, cost in dense.items()})
    limits = limits_for_budget(anatomy, space, budget, latency=latency, compensates=compensates)
    choice = draw_choice(data, space)
    exact = costs_of(anatomy, space.units_of(choice), compensates=compensates, latency=latency)
    counted = {x.kind: cost_of(x, choice) for x in limits.limits}
    assert counted[LimitKind.MEMORY_BYTES] == exact["memory_bytes"]
    assert counted[LimitKind.FLOPS] == exact["flops"]
    assert counted[LimitKind.LATENCY_MS] == round(exact["latency_ms"] * 1e6)
    # Names, shapes and offsets lose a digit or two: never a step of 8 channels' data.
    step = 8 * anatomy.layers[0].ffn_parameters_per_channel * 4
    assert exact["disk_bytes"] <= counted[LimitKind.DISK_BYTES] < exact["disk_bytes"] + step


@QUICK
@given(data=st.data(), compensates=st.booleans(), shard=st.integers(2_000, 60_000))
def test_headers_are_bounded_however_tensors_are_sharded(
    anatomy: ModelAnatomy, data: st.DataObject, compensates: bool, shard: int
) -> None:
    widths = [data.draw(st.integers(1, x.ffn_width)) for x in anatomy.layers]
    pruned = pruned_tensors(anatomy, anatomy.architecture(widths), compensates=compensates)
    headers = {t.name: (t.name, t.shape, t.dtype) for t in pruned}
    files = plan_shards(list(headers.values()), max_shard_size=shard).filename_to_tensors.values()
    written = sum(safetensors_file_bytes([headers[name] for name in names]) for names in files)
    content = sum(tensor_bytes(shape, dtype) for _, shape, dtype in headers.values())
    bound = header_bytes_bound(anatomy, compensates=compensates, max_shard_size=shard)
    assert written - content <= bound
    # The dense model has at least half as many files as are counted, of 56 bytes each; the rest is a few digits.
    dense = sum(tensor_bytes(t.shape, t.dtype) for t in anatomy.tensors) + 200 * anatomy.num_layers
    assert bound - (written - content) < 56 * (2 * dense / shard + 1) + 10 * len(headers) + 200 * anatomy.num_layers


def test_the_header_of_a_dense_model_in_one_file_is_exact(anatomy: ModelAnatomy) -> None:
    headers = [(t.name, t.shape, t.dtype) for t in anatomy.tensors]
    data = sum(tensor_bytes(t.shape, t.dtype) for t in anatomy.tensors)
    assert header_bytes_bound(anatomy) == safetensors_file_bytes(headers) - data


@settings(QUICK, max_examples=60)
@given(data=st.data(), compensates=st.booleans())
def test_what_is_fitted_keeps_the_exact_budget_and_gives_nothing_away(
    anatomy: ModelAnatomy, data: st.DataObject, compensates: bool
) -> None:
    space = ffn_widths(
        anatomy, round_to=data.draw(st.sampled_from([1, 4, 8])), tp_size=data.draw(st.sampled_from([1, 2]))
    )
    latency = latency_model(
        DEVICES[data.draw(st.sampled_from(["l4", "laptop-16gb", "raspberry-pi-5-8gb"]))], anatomy, WORKLOAD
    )
    model: dict[str, Any] = {"compensates": compensates, "latency": latency}
    target = costs_of(anatomy, space.units_of(draw_choice(data, space)), **model)
    names = data.draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4, unique=True))
    budget = budget_of(**{name: target[name] for name in names})
    limits = limits_for_budget(anatomy, space, budget, **model)
    choice = limits.fit(draw_choice(data, space), draw_worth(data, space))
    achieved = achieved_costs(anatomy, space.architecture(choice), WORKLOAD, **model)
    assert exceeded_limits(PlanTarget(budget=budget), achieved) == []
    widths = space.units_of(choice)
    for layer, row in enumerate(space.units):
        wider = [int(w) for w in row if w > widths[layer]][:1]
        if wider:
            more = costs_of(anatomy, [*widths[:layer], *wider, *widths[layer + 1 :]], **model)
            assert any(more[name] + 300 * (name == "disk_bytes") > getattr(budget, name) for name in names)


def test_each_limit_can_be_asked_for_again_at_its_nearest_value(anatomy: ModelAnatomy) -> None:
    space = ffn_widths(anatomy, round_to=8)
    latency = latency_model(DEVICES["raspberry-pi-5-8gb"], anatomy, WORKLOAD)
    least: dict[str, float] = {"memory_bytes": 1, "latency_ms": 1e-7, "flops": 1, "disk_bytes": 1}
    with pytest.raises(InfeasibleBudgetError) as caught:
        limits_for_budget(anatomy, space, budget_of(**least), latency=latency)
    nearest = caught.value.nearest_values
    assert nearest.keys() == least.keys()
    again = limits_for_budget(anatomy, space, budget_of(**nearest), latency=latency)
    assert fitted(again, [1] * anatomy.num_layers) == narrowest(space)


@pytest.mark.parametrize("compensates", [False, True])
@pytest.mark.parametrize("round_to", [1, 8])
def test_files_may_be_as_small_as_those_of_the_narrowest_widths(
    anatomy: ModelAnatomy, compensates: bool, round_to: int
) -> None:
    space = ffn_widths(anatomy, round_to=round_to)
    exact = costs_of(anatomy, narrowest(space), compensates=compensates)
    least = exact["disk_bytes"]
    with pytest.raises(InfeasibleBudgetError) as caught:
        limits_for_budget(anatomy, space, budget_of(disk_bytes=least - 1), compensates=compensates)
    assert (caught.value.binding, caught.value.nearest_values) == ("disk_bytes", {"disk_bytes": least})
    # From there to the longest header, nothing wider is allowed: it would be counted with the longest.
    wide = limits_for_budget(anatomy, space, budget_of(disk_bytes=least * 9), compensates=compensates).limits[0]
    longest = wide.least
    assert longest > least
    for most in (least, longest - 1):
        limits = limits_for_budget(anatomy, space, budget_of(disk_bytes=most), compensates=compensates)
        assert fitted(limits, space.units_of(space.top)) == narrowest(space)
        for tight, bound in zip(limits.limits[0].costs, wide.costs, strict=True):
            assert (limits.limits[0].fixed + tight[1:] >= wide.fixed + bound[1:]).all()
    # Another limit that is exceeded is the one that is named.
    broken = budget_of(disk_bytes=least, memory_bytes=exact["memory_bytes"] - 1)
    with pytest.raises(InfeasibleBudgetError) as caught:
        limits_for_budget(anatomy, space, broken, compensates=compensates)
    assert caught.value.nearest_values == {"disk_bytes": least, "memory_bytes": exact["memory_bytes"]}
    assert "disk_bytes" not in caught.value.remedy


def test_nanoseconds_are_counted_in_decimals() -> None:
    class Steps(LatencyModel):
        """Each channel takes 100,000 ns, all else nothing."""

        source, description = LatencySource.MEASURED, "made up"

        def site_phases_ns(self, site: Site, units: Any) -> Any:
            return units * (100_000 if site.sublayer is Sublayer.FFN else 0), np.zeros_like(units)

        def fixed_phases_ns(self) -> tuple[int, int]:
            return 0, 0

    anatomy = made_up_anatomy([64])
    space = ffn_widths(anatomy, round_to=1)
    model = Steps(Workload(batch=1, prompt_tokens=1, output_tokens=1))
    # 2.3 x 1e6 is 2299999.9999999995 in binary.
    for channels in (1, 23, 46, 51):
        limit = latency_limit(anatomy, space, model, channels / 10)
        assert limit.most == channels * 100_000
        found = LatencyPrice(anatomy, model).latency(anatomy.architecture([channels]))
        assert found is not None
        assert found.total_ms == channels / 10


def test_flops_worked_out_by_hand() -> None:
    anatomy = made_up_anatomy([16, 16], per_channel=30, other=100)
    space = ffn_widths(anatomy, round_to=8)
    budget = Budget(flops=10**9, batch=3, prompt_tokens=4, output_tokens=2)
    (limit,) = limits_for_budget(anatomy, space, budget).limits
    # 5 positions, each passes a layer's weights: 2 x 30 x 8 operations a step, for a batch of 3.
    assert [row.tolist() for row in limit.costs] == [[3 * 5 * 480, 3 * 5 * 960]] * 2
    # Other weights, attention over 1 + ... + 5 positions, the head for two tokens.
    assert limit.fixed == 3 * (2 * 2 * 100 * 5 + 2 * 4 * 4 * 8 * 15 + 2 * 10 * 100 * 2)


def test_a_demand_restricted_to_wider_layers_names_their_cost(anatomy: ModelAnatomy) -> None:
    space = ffn_widths(anatomy, round_to=8)
    least = costs_of(anatomy, narrowest(space))["memory_bytes"]
    demand = Demand(anatomy, space, budget=budget_of(memory_bytes=least))
    assert fitted(demand.limits_for(), narrowest(space)) == narrowest(space)
    with pytest.raises(InfeasibleBudgetError) as caught:
        demand.limits_for(at_least=[16] * anatomy.num_layers)
    assert caught.value.nearest == costs_of(anatomy, [16] * anatomy.num_layers)["memory_bytes"]


def test_a_budget_that_limits_nothing_and_latency_on_no_device(anatomy: ModelAnatomy) -> None:
    space = ffn_widths(anatomy, round_to=8)
    with pytest.raises(InputError, match="limits something"):
        limits_for_budget(anatomy, space, Budget(batch=3))
    with pytest.raises(InputError, match="on a device"):
        limits_for_budget(anatomy, space, Budget(latency_ms=3.0))


def test_costs_beyond_64_bits_are_refused() -> None:
    anatomy = made_up_anatomy([2**20] * 4, per_channel=2**20)
    huge = Budget(flops=2**63 - 1, batch=1024, prompt_tokens=2**20, output_tokens=2**20)
    with pytest.raises(InputError, match=r"2\*\*62.*smaller batch"):
        limits_for_budget(anatomy, ffn_widths(anatomy, round_to=2**17), huge)


BAD = (0, -1, float("nan"), float("inf"), True, "6", 2**63, [1])


@pytest.mark.parametrize(
    ("field", "value"),
    [*itertools.product(FIELDS, BAD), *itertools.product(("memory_bytes", "flops", "disk_bytes", "batch"), (1.5, 2.0))],
)
def test_a_budgets_fields_are_strict(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Budget(**{field: value})


def test_a_plan_with_every_cost_keeps_to_what_it_reaches(anatomy: ModelAnatomy) -> None:
    latency = latency_model(DEVICES["l4"], anatomy, WORKLOAD)
    architecture = anatomy.architecture([8] * anatomy.num_layers)
    achieved = achieved_costs(anatomy, architecture, WORKLOAD, latency=latency)
    assert achieved.latency_source == "roofline"
    assert achieved.prefill_ms is not None
    assert achieved.decode_ms_per_token is not None
    steps = WORKLOAD.output_tokens - 1
    assert achieved.latency_ms == pytest.approx(achieved.prefill_ms + steps * achieved.decode_ms_per_token)
    exact = {name: getattr(achieved, name) for name in FIELDS}
    assert exceeded_limits(PlanTarget(budget=budget_of(**exact)), achieved) == []
    for name in FIELDS:
        less = {**exact, name: exact[name] - 1 if name != "latency_ms" else exact[name] * 0.999}
        (problem,) = exceeded_limits(PlanTarget(budget=budget_of(**less)), achieved)
        assert problem.startswith(name)
    # A budget of time is not kept by a plan that knows of no time.
    assert exceeded_limits(
        PlanTarget(budget=budget_of(latency_ms=1e6)), achieved_costs(anatomy, architecture, WORKLOAD)
    )


def test_memory_is_weights_cache_and_activations(anatomy: ModelAnatomy) -> None:
    half = replace(anatomy, dtype="F32")
    architecture = half.architecture([8] * anatomy.num_layers)
    achieved = achieved_costs(half, architecture, WORKLOAD)
    assert achieved.activation_bytes is not None
    weights = achieved.memory_bytes - achieved.kv_cache_bytes - achieved.activation_bytes
    pruned = pruned_tensors(half, architecture, compensates=False)
    assert weights == sum(tensor_bytes(t.shape, t.dtype) for t in pruned)
