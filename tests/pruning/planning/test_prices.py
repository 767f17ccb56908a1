"""One price a limit kind: tables add up to exact costs, and both to what is counted tensor by tensor."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_layer import TensorSpec
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.safetensors_layout import tensor_bytes
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.errors import InfeasibleBudgetError, InputError
from pruning.planning import prices
from pruning.planning.activations import activation_bytes
from pruning.planning.added_biases import pruned_tensors
from pruning.planning.budget import limits_for_budget
from pruning.planning.cost import achieved_costs
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.make_plan import exceeded_limits
from pruning.planning.plan import PlanTarget
from pruning.planning.space import Options, Space
from pruning.planning.workload import Budget, Workload
from tests.pruning.made_up import made_up_anatomy
from tests.pruning.made_up_devices import made_up_profile
from tests.pruning.made_up_limits import cost_of
from tests.pruning.made_up_spaces import dense_sites, every_site, whole_layers
from tests.tiny_models import tiny_model

# Biases, fused rows, attention beside the FFN, norms of heads, four norms a layer, one KV group, windows.
FAMILIES = (
    "llava-llama", "llava-llama-biases", "llava-phi3", "llava-phi", "qwen3-vl", "internvl-qwen2", "paligemma2",
    "gemma3",
)  # fmt: skip
HAVE_BIASES = ("llava-llama-biases", "llava-phi")
"""Those whose down projections have biases already."""

SPACES = (every_site, whole_layers)
WORKLOAD = Workload(batch=2, prompt_tokens=9, output_tokens=4)
COVERED = Workload(batch=1, prompt_tokens=12, output_tokens=4)
"""By made-up profiles."""
NUM_ARCHITECTURES = 10_000
NUM_BUDGETS = 10_000


@functools.cache
def anatomy_with(family: str) -> ModelAnatomy:
    return anatomy_of(tiny_model(family))


def all_prices(anatomy: ModelAnatomy, *, compensates: bool) -> list[prices.Price]:
    of_weights = (prices.ffn_parameters, prices.parameters, prices.weight_bytes)
    of_workload = (prices.memory_bytes, prices.flops)
    return [
        *(price(anatomy, compensates=compensates) for price in of_weights),
        *(price(anatomy, WORKLOAD, compensates=compensates) for price in of_workload),
    ]


def kept_tensors(anatomy: ModelAnatomy, architecture: Architecture, *, compensates: bool) -> tuple[TensorSpec, ...]:
    return pruned_tensors(anatomy, architecture, compensates=compensates)


def values_of(tensors: tuple[TensorSpec, ...]) -> int:
    return sum(int(np.prod(t.shape)) for t in tensors)


def counted(family: str, architecture: Architecture, *, compensates: bool) -> dict[LimitKind, int]:
    """All that is limited, from shapes, positions and heads alone."""
    anatomy = anatomy_with(family)
    tensors = kept_tensors(anatomy, architecture, compensates=compensates)
    removed = values_of(anatomy.tensors) - values_of(tensors)
    weights = sum(tensor_bytes(t.shape, t.dtype) for t in tensors)
    parameters, batch = anatomy.decoder_parameters - removed, WORKLOAD.batch
    positions = WORKLOAD.prompt_tokens + WORKLOAD.output_tokens - 1
    operations = 2 * anatomy.hidden_size * anatomy.vocab_size * batch * WORKLOAD.output_tokens
    operations += 2 * parameters * positions * batch
    cache, ffn, adds_biases = 0, 0, compensates and family not in HAVE_BIASES
    channels, groups = anatomy.ffn_widths(architecture), anatomy.kv_groups(architecture)
    for layer, width, kept in zip(anatomy.layers, channels, groups, strict=True):
        heads = kept * layer.num_heads // layer.num_kv_groups
        operations += batch * 2 * 2 * heads * layer.head_dim * sum(range(1, positions + 1))
        seen = min(positions + 1, layer.window or positions + 1)
        cache += 2 * batch * kept * layer.head_dim * seen * 4
        bias = anatomy.hidden_size if adds_biases and 0 < width < layer.ffn_width else 0
        ffn += width * layer.ffn_parameters_per_channel + bias
    return {
        LimitKind.FFN_PARAMETERS: ffn,
        LimitKind.PARAMETERS: anatomy.total_parameters - removed,
        LimitKind.DISK_BYTES: weights,
        LimitKind.MEMORY_BYTES: weights + cache + activation_bytes(anatomy, WORKLOAD),
        LimitKind.FLOPS: operations,
    }


CASES = list(itertools.product(FAMILIES, SPACES, (False, True)))


@pytest.mark.parametrize(("family", "space_of", "compensates"), CASES)
def test_tables_are_exact_costs_are_what_is_counted(
    family: str, space_of: Callable[[ModelAnatomy], Space], compensates: bool
) -> None:
    anatomy = anatomy_with(family)
    space, rng = space_of(anatomy), np.random.default_rng([FAMILIES.index(family), SPACES.index(space_of), compensates])
    of_kind = {price.kind: price for price in all_prices(anatomy, compensates=compensates)}
    limits = {kind: price.limit(space, 0) for kind, price in of_kind.items()}
    bench = profiled_device(made_up_profile(anatomy=anatomy, attention=True))
    models = [latency_model(DEVICES[name], anatomy, WORKLOAD) for name in ("raspberry-pi-5-8gb", "l4")]
    models.append(latency_model(bench, anatomy, COVERED))
    times = [prices.LatencyPrice(anatomy, model) for model in models]
    time_limits = [price.limit(space, 0) for price in times]
    choices = [
        space.top,
        space.bottom,
        *rng.integers(space.counts, size=(NUM_ARCHITECTURES // len(CASES), len(space.counts))),
    ]
    for choice in choices:
        architecture = space.architecture(choice)
        expected = counted(family, architecture, compensates=compensates)
        for kind, limit in limits.items():
            assert cost_of(limit, choice) == of_kind[kind].cost(architecture) == expected[kind], (kind, architecture)
        for price, limit in zip(times, time_limits, strict=True):
            found = price.latency(architecture)
            assert found is not None
            assert cost_of(limit, choice) == price.cost(architecture) == round(found.total_ms * 1e6), architecture


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_space_does_not_name_is_dense(family: str) -> None:
    anatomy = anatomy_with(family)
    widths = ffn_widths(anatomy, round_to=8)
    for price in all_prices(anatomy, compensates=False):
        limit = price.limit(widths, 0)
        assert limit.fixed + sum(int(row[-1]) for row in limit.costs) == price.total == price.cost(Architecture())
        assert limit.fixed >= price.fixed


def test_a_skipped_site_costs_nothing_and_its_first_unit_all_that_goes_with_it() -> None:
    anatomy = anatomy_with("llava-llama-biases")
    sites = dense_sites(anatomy)
    nothing = Architecture.of({site: Option(0) for site in sites})
    for price in all_prices(anatomy, compensates=True):
        assert price.cost(nothing) == price.fixed
    # Norm and output bias are of D each, and stay while one unit stays.
    price = prices.parameters(anatomy)
    for site in sites:
        skipped, one, two = price.of(site, Options(np.arange(3))).tolist()
        assert (skipped, one - (two - one)) == (0, 2 * anatomy.hidden_size)


def test_zeros_cost_what_other_weights_do() -> None:
    anatomy = anatomy_with("llava-llama")
    sparse = Architecture.of({Site(0, Sublayer.FFN): Option(48, density=0.5)})
    for price in all_prices(anatomy, compensates=False):
        assert price.cost(sparse) == price.total


def test_biases_of_cut_layers_are_paid_for() -> None:
    anatomy = made_up_anatomy([16, 16], per_channel=30)  # D = 10
    space = ffn_widths(anatomy, round_to=8)
    costs = prices.ffn_parameters(anatomy, compensates=True).limit(space, 1000).costs
    assert [row.tolist() for row in costs] == [[250, 480], [250, 480]]


def test_where_the_last_channels_are_cheaper_than_a_bias_dense_costs_less() -> None:
    anatomy = made_up_anatomy([10], per_channel=3)  # D = 10
    limit = prices.ffn_parameters(anatomy, compensates=True).limit(ffn_widths(anatomy, round_to=8), 30)
    assert [row.tolist() for row in limit.costs] == [[34, 30]]


def test_costs_beyond_64_bits_are_refused_in_tables_and_said_of_plans() -> None:
    anatomy = made_up_anatomy([2**20] * 4, per_channel=2**20)
    workload = Workload(batch=1024, prompt_tokens=2**20, output_tokens=2**20)
    price = prices.flops(anatomy, workload)
    with pytest.raises(InputError, match=r"2\*\*62.*smaller batch"):
        price.limit(ffn_widths(anatomy, round_to=2**17), 2**63 - 1)
    assert price.cost(Architecture()) > 2**63


FIELDS = ("latency_ms", "memory_bytes", "flops", "disk_bytes")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_budget_is_ever_exceeded(family: str) -> None:
    anatomy, rng = anatomy_with(family), np.random.default_rng(FAMILIES.index(family))
    spaces = (every_site(anatomy, step=8), whole_layers(anatomy, step=16), ffn_widths(anatomy, round_to=4))
    latency = latency_model(DEVICES["l4"], anatomy, WORKLOAD)
    everything = achieved_costs(anatomy, Architecture(), WORKLOAD, latency=latency)
    for space, compensates in itertools.product(spaces, (False, True)):
        limits_for = functools.partial(limits_for_budget, anatomy, space, latency=latency, compensates=compensates)
        dense = {name: getattr(everything, name) for name in FIELDS}
        all_limits = limits_for(budget_of(**{name: 2 * dense[name] for name in FIELDS})).limits
        for turn in range(NUM_BUDGETS // len(FAMILIES) // 6 + 1):
            names = rng.permutation(FIELDS)[: int(rng.integers(1, 4))].tolist()
            budget = budget_of(**{name: dense[name] * rng.uniform(0.3, 1) for name in names})
            try:
                if turn % 8:  # the tables are the same whatever the budget: no need to make them 10,000 times
                    limits = Limits(
                        space,
                        tuple(replace(x, most=most_of(x.kind, budget)) for x in all_limits if x.kind.value in names),
                    )
                else:
                    limits = limits_for(budget)
            except InfeasibleBudgetError as error:
                budget = budget.model_copy(update=error.nearest_values)
                limits = limits_for(budget)
            worth = rng.normal(size=(space.num_decisions, int(space.counts.max())))
            architecture = space.architecture(limits.fit(rng.integers(space.counts), worth))
            achieved = achieved_costs(anatomy, architecture, WORKLOAD, compensates=compensates, latency=latency)
            assert exceeded_limits(PlanTarget(budget=budget), achieved) == []


def budget_of(**most: float) -> Budget:
    latency = {name: most.pop(name) for name in ("latency_ms",) if name in most}
    return Budget(**{name: int(x) for name, x in most.items()}, **latency, **WORKLOAD.model_dump())


def most_of(kind: LimitKind, budget: Budget) -> int:
    most = getattr(budget, kind.value)
    return int(most * 1e6) if kind is LimitKind.LATENCY_MS else int(most)
