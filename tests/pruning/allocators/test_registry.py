"""What every statistical allocator promises: the same parameters as the others, on even and uneven layers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.registry import STATISTICAL_ALLOCATORS
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import FingerprintMismatchError, InfeasibleTargetError, InputError
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.added_biases import bias_parameters
from pruning.planning.cost import achieved_costs
from tests.pruning.made_up import at_most, made_up_anatomy, made_up_statistics, widths_of

NAMES = sorted(STATISTICAL_ALLOCATORS)


def uneven(widths: list[int], per_channel: list[int]) -> ModelAnatomy:
    anatomy = made_up_anatomy(widths)
    layers = tuple(
        replace(x, ffn_parameters_per_channel=p, parameters=x.ffn_width * p + 1000)
        for x, p in zip(anatomy.layers, per_channel, strict=True)
    )
    return replace(anatomy, layers=layers)


def least_parameters(anatomy: ModelAnatomy, name: str) -> int:
    added = bias_parameters(anatomy) if name == "flap" else [0] * anatomy.num_layers
    return sum(
        min(8, x.ffn_width) * x.ffn_parameters_per_channel + (bias if x.ffn_width > 8 else 0)
        for x, bias in zip(anatomy.layers, added, strict=True)
    )


def test_the_names() -> None:
    assert NAMES == ["ecoflap", "flap", "llm-pruner", "owl", "shortgpt", "wanda-sp"]
    assert all(allocator.method == name for name, allocator in STATISTICAL_ALLOCATORS.items())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(4, 90), st.integers(10, 40)), min_size=1, max_size=8),
    st.floats(0.0, 1.0),
    st.integers(0, 99),
)
def test_at_most_the_budget_and_less_than_a_step_below_it(
    name: str, layers: list[tuple[int, int]], share: float, seed: int
) -> None:
    anatomy = uneven([w for w, _ in layers], [p for _, p in layers])
    allocator = STATISTICAL_ALLOCATORS[name]
    statistics = made_up_statistics(anatomy, allocator.kind, seed=seed)
    least = least_parameters(anatomy, name)
    budget = least + int(share * max(anatomy.ffn_parameters - least, 0))
    allocation = allocator.allocate(anatomy, statistics, at_most(anatomy, budget, compensates=allocator.compensates))
    compensates = allocation.ranking is not None and allocation.ranking.compensates

    def kept(widths: list[int]) -> int:
        return (
            achieved_costs(anatomy, anatomy.architecture(widths), compensates=compensates).parameters
            - anatomy.total_parameters
        )

    removed = budget - anatomy.ffn_parameters
    assert kept(widths_of(anatomy, allocation)) <= removed
    for index, (width, layer) in enumerate(zip(widths_of(anatomy, allocation), anatomy.layers, strict=True)):
        assert min(8, layer.ffn_width) <= width <= layer.ffn_width
        assert width == layer.ffn_width or width % 8 == 0
        wider = [w + min(8, layer.ffn_width - w) * (i == index) for i, w in enumerate(widths_of(anatomy, allocation))]
        assert width == layer.ffn_width or kept(wider) > removed


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_model_stays_whole(name: str) -> None:
    anatomy = made_up_anatomy([60, 30, 44])
    allocator = STATISTICAL_ALLOCATORS[name]
    statistics = made_up_statistics(anatomy, allocator.kind)
    for budget in (anatomy.ffn_parameters, 10 * anatomy.ffn_parameters):
        assert widths_of(
            anatomy,
            allocator.allocate(anatomy, statistics, at_most(anatomy, budget, compensates=allocator.compensates)),
        ) == [60, 30, 44]


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_met_is_refused_with_what_can(name: str) -> None:
    anatomy = made_up_anatomy([64, 32])
    allocator = STATISTICAL_ALLOCATORS[name]
    statistics = made_up_statistics(anatomy, allocator.kind)
    least = least_parameters(anatomy, name)
    assert widths_of(
        anatomy, allocator.allocate(anatomy, statistics, at_most(anatomy, least, compensates=allocator.compensates))
    ) == [8, 8]
    for budget in (least - 1, 0, -100):
        with pytest.raises(InfeasibleTargetError) as caught:
            allocator.allocate(anatomy, statistics, at_most(anatomy, budget, compensates=allocator.compensates))
        assert caught.value.nearest == least


@pytest.mark.parametrize("name", NAMES)
def test_statistics_of_another_kind_or_model_are_refused(name: str) -> None:
    anatomy = made_up_anatomy([64, 32])
    allocator = STATISTICAL_ALLOCATORS[name]
    for kind in set(StatisticsKind) - {allocator.kind}:
        with pytest.raises(InputError, match="of kind"):
            allocator.allocate(
                anatomy, made_up_statistics(anatomy, kind), at_most(anatomy, 1000, compensates=allocator.compensates)
            )
    other = replace(made_up_statistics(anatomy, allocator.kind), fingerprint="1" * 64)
    with pytest.raises(FingerprintMismatchError):
        allocator.allocate(anatomy, other, at_most(anatomy, 1000, compensates=allocator.compensates))


@pytest.mark.parametrize("name", NAMES)
def test_own_rankings_are_of_the_model_and_only_flap_compensates(name: str) -> None:
    anatomy = made_up_anatomy([64, 32])
    allocator = STATISTICAL_ALLOCATORS[name]
    statistics = made_up_statistics(anatomy, allocator.kind)
    ranking = allocator.allocate(anatomy, statistics, at_most(anatomy, 1500, compensates=allocator.compensates)).ranking
    if name not in ("wanda-sp", "flap", "llm-pruner"):
        assert ranking is None
        return
    assert ranking is not None
    ranking.check(anatomy)
    assert ranking.compensates is (name == "flap")
    # A plan names the ranking by its sha256: other budgets must name the same.
    again = allocator.allocate(anatomy, statistics, at_most(anatomy, 2000, compensates=allocator.compensates)).ranking
    assert again is not None
    assert again.sha256 == ranking.sha256
    assert not np.array_equal(ranking.ffn[0], np.arange(64))
