"""Spaces with bits: their options, what they cost, and the additive program in them against trying all choices."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pruning.allocators.additive import additive_architecture, interpolated_losses
from pruning.allocators.additive_dp import cost_to_go
from pruning.allocators.evolution import mutate
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.devices.catalogue import DEVICES
from pruning.devices.latency import latency_model
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning import prices
from pruning.planning.axis_spaces import SpaceName, coarse_space, fine_space, name_of
from pruning.planning.budget import limits_for_budget
from pruning.planning.cost import achieved_costs
from pruning.planning.limits import Limits
from pruning.planning.scope import Scope
from pruning.planning.space import Space
from pruning.planning.target import decoder_byte_limits, limits_for_sparsity
from pruning.planning.workload import Budget, Workload
from tests.tiny_models import save_tiny_checkpoint

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> ModelAnatomy:
    """4 layers, 64 FFN channels, 2 KV groups of 2 heads of 8, in float32."""
    return read_anatomy(save_tiny_checkpoint(tmp_path_factory.mktemp("bits"), ffn_width=64))


def options_of(space: Space, site: Site) -> list[Option]:
    return next(list(x.options[0]) for x in space.decisions if x.sites == (site,))


def test_the_options(anatomy: ModelAnatomy, checkpoint: Path) -> None:
    bits = coarse_space(anatomy, SpaceName.BITS)
    assert options_of(bits, Site(0, FFN)) == [Option(64, 4), Option(64, 8), Option(64)]
    assert options_of(bits, Site(3, ATTENTION)) == [Option(2, 4), Option(2, 8), Option(2)]
    joint = coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2)
    # One KV group is 16 inputs of the output projection: half a group.
    assert options_of(joint, Site(0, ATTENTION)) == [Option(2, 4), Option(2, 8), Option(2)]
    in_between = [Option(32, 4), Option(32, 8), Option(64, 4), Option(32), Option(64, 8), Option(64)]
    assert options_of(joint, Site(0, FFN)) == in_between
    assert options_of(joint, Site(1, FFN)) == [Option(0), *in_between]
    assert options_of(joint, Site(1, ATTENTION)) == [Option(0), Option(2, 4), Option(1), Option(2, 8), Option(2)]
    for space, name in ((bits, SpaceName.BITS), (joint, SpaceName.ALL_BITS)):
        assert name_of(space) is name
        assert space.architecture(space.top) == DENSE
        assert Space.from_document(space.document()).document() == space.document()
        choice = tuple(int(k) // 2 for k in space.counts)
        assert space.choice_of(space.architecture(choice)) == choice
    # Two devices share 32 channels as 16 and 16, half a group each.
    assert [
        x.units for x in options_of(fine_space(anatomy, SpaceName.ALL_BITS, round_to=8, tp_size=2), Site(0, FFN))
    ] == [
        64,
        64,
        64,
    ]
    narrow = read_anatomy(checkpoint)  # of 48 channels
    assert {x.sites[0].sublayer for x in coarse_space(narrow, SpaceName.BITS).decisions} == {ATTENTION}


@pytest.mark.parametrize("name", [SpaceName.BITS, SpaceName.ALL_BITS])
def test_tables_are_what_plans_say(anatomy: ModelAnatomy, name: SpaceName) -> None:
    """Random choices: bytes, time and operations of tables are those of plans, and no header is above its bound."""
    space = fine_space(anatomy, name, round_to=8)
    device = DEVICES["jetson-orin-nano-8gb"]
    budget = Budget(memory_bytes=10**12, latency_ms=1e6, flops=10**15, disk_bytes=10**12)
    model = latency_model(device, anatomy, budget.workload)
    limits = limits_for_budget(anatomy, space, budget, latency=model)
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = rng.integers(0, space.counts)
        achieved = achieved_costs(anatomy, space.architecture(choice), budget.workload, latency=model)
        memory, latency, flops, disk = (
            x.fixed + sum(int(row[k]) for row, k in zip(x.costs, choice, strict=True)) for x in limits.limits
        )
        assert (memory, flops) == (achieved.memory_bytes, achieved.flops)
        assert latency / 1e6 == pytest.approx(achieved.latency_ms)
        assert 0 <= disk - achieved.disk_bytes < 16_000
    dense = achieved_costs(anatomy, DENSE, budget.workload, latency=model)
    packed = achieved_costs(anatomy, space.architecture([1] * space.num_decisions), budget.workload, latency=model)
    assert packed.latency_ms is not None
    assert dense.latency_ms is not None
    assert packed.latency_ms < dense.latency_ms


def loss_of(space: Space) -> np.ndarray:
    """Convex in units, more for fewer bits, some layers more than others."""
    table = np.zeros((space.num_decisions, int(space.counts.max())))
    for n, decision in enumerate(space.decisions):
        dense = space.dense[decision.sites[0]]
        for k, x in enumerate(decision.options[0]):
            bits = {None: 0.0, 8: 0.01, 4: 0.2}[x.bits] if x.units else 0.0
            table[n, k] = (1 + n % 3) * ((1 - x.units / dense) ** 2 + bits)
    return table


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.3])
@pytest.mark.parametrize("name", [SpaceName.BITS, SpaceName.ALL_BITS])
def test_the_additive_program_is_the_best_of_all(anatomy: ModelAnatomy, name: SpaceName, share: float) -> None:
    levels = coarse_space(anatomy, name, num_levels=2)
    whole = fine_space(anatomy, name, round_to=32)
    assert whole.document() == levels.document()
    # Few decisions, so that all choices can be tried.
    few = Space(levels.decisions[:4], {site: levels.dense[site] for x in levels.decisions[:4] for site in x.sites})
    price = prices.decoder_bytes(anatomy)
    outside = price.total - sum(price.of_dense[site] for site in few.dense)
    limits = decoder_byte_limits(anatomy, few, int(outside + share * (price.total - outside)))
    loss = loss_of(few)
    found = few.choice_of(additive_architecture(few, loss, limits))
    assert found is not None
    every = np.array(list(itertools.product(*(range(k) for k in few.counts))))
    fitting = every[[bool((limits.slack(choice) >= 0).all()) for choice in every]]
    least = loss[np.arange(4), fitting].sum(axis=1).min()
    assert loss[np.arange(4), found].sum() == pytest.approx(least, rel=1e-9, abs=1e-12)
    assert (limits.slack(uniform_choice(limits)) >= 0).all()


def is_dominated(limits: Limits, loss: np.ndarray, n: int, chosen: int) -> bool:
    """Whether another option of decision `n` costs no more under any limit, and loses less."""
    others = range(int(limits.space.counts[n]))
    no_dearer = (all(x.costs[n][k] <= x.costs[n][chosen] for x in limits.limits) for k in others)
    return any(cheap and loss[n, k] < loss[n, chosen] for k, cheap in zip(others, no_dearer, strict=True))


def test_what_is_left_over_buys_nothing_that_loses_more(anatomy: ModelAnatomy) -> None:
    """Where a search begins: the additive optimum, filled up. There is room for options that cost and lose more, in
    most budgets: filled up to them, the sum was up to 25 times as large."""
    space = coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2)
    loss, total = loss_of(space), prices.decoder_bytes(anatomy).total
    for share in np.linspace(0.3, 0.98, 35):
        limits = decoder_byte_limits(anatomy, space, int(share * total))
        spare = int(limits.spare.item())
        best = cost_to_go(limits.table, loss, spare).best_choice(spare)
        for start in (best, limits.table.floor):
            chosen = limits.fit(start, -loss)
            assert (limits.slack(chosen) >= 0).all()
            assert not [n for n, k in enumerate(chosen) if is_dominated(limits, loss, n, int(k))]


def test_a_step_keeps_more_of_something_and_less_of_nothing(anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2)
    own = options_of(space, Site(1, FFN))
    n = next(n for n, x in enumerate(space.decisions) if x.sites == (Site(1, FFN),))
    ups = {own[k]: {own[above] for above in row} for k, row in enumerate(space.steps_up[n])}
    assert ups == {
        Option(0): {Option(32, 4)},
        Option(32, 4): {Option(32, 8), Option(64, 4)},
        Option(32, 8): {Option(32), Option(64, 8)},
        Option(32): {Option(64)},
        Option(64, 4): {Option(64, 8)},
        Option(64, 8): {Option(64)},
        Option(64): set(),
    }
    assert {own[k] for k in space.steps_down[n][own.index(Option(64, 8))]} == {Option(32, 8), Option(64, 4)}
    ladder = coarse_space(anatomy, SpaceName.ALL, num_levels=2)
    assert ladder.steps_up[1] == ((1,), ())
    assert ladder.steps_down[1] == ((), (0,))


def test_children_in_evolution_give_nothing_away(anatomy: ModelAnatomy) -> None:
    """Neither units nor bits that fit; and they come where more of one costs less of the other."""
    space = coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2)
    limits = decoder_byte_limits(anatomy, space, int(0.5 * prices.decoder_bytes(anatomy).total))
    rng, parent = np.random.default_rng(0), tuple(uniform_choice(limits).tolist())
    seen: set[Option] = set()
    for _ in range(20):
        parent = mutate(limits, parent, rng)
        slack = limits.slack(parent)
        assert (slack >= 0).all()
        for n, k in enumerate(parent):
            taken = [limits.table.excess[:, n, above] - limits.table.excess[:, n, k] for above in space.steps_up[n][k]]
            assert all((more > slack).any() for more in taken)
        seen |= {space.decisions[n].options[0][k] for n, k in enumerate(parent)}
    assert {x.bits for x in seen if x.units == 32} | {x.bits for x in seen if x.units == 64} == {None, 4, 8}


def test_bits_stay_under_limits_that_they_do_not_help_to_meet(anatomy: ModelAnatomy) -> None:
    space = fine_space(anatomy, SpaceName.ALL_BITS, round_to=8)
    loss = loss_of(space)
    limits = limits_for_sparsity(anatomy, space, 0.3, Scope.DECODER)
    for found in (space.architecture(uniform_choice(limits)), additive_architecture(space, loss, limits)):
        assert any(option.units < space.dense[site] for site, option in found.items)
        assert all(option.bits is None for _, option in found.items)
    # Some half of the operations, and a third of the bytes: fewer units for the first, fewer bits for the other.
    flops = prices.flops(anatomy, Workload())
    budget = Budget(flops=flops.fixed + int(0.62 * (flops.total - flops.fixed)), disk_bytes=10**9)
    loose = space.architecture(uniform_choice(limits_for_budget(anatomy, space, budget)))
    assert {option.bits for _, option in loose.items} == {None}
    price = prices.weight_bytes(anatomy)
    least = price.total - prices.decoder_bytes(anatomy).total
    third = budget.model_copy(update={"disk_bytes": least + prices.decoder_bytes(anatomy).total // 3})
    both = space.architecture(uniform_choice(limits_for_budget(anatomy, space, third)))
    assert {option.bits for _, option in both.items if option.units} & {4, 8}


def test_widths_in_groups_that_no_level_is_of(checkpoint: Path) -> None:
    """48 channels: levels 24 and 48 have no fewer bits, and 32, which plans may choose, has."""
    anatomy = read_anatomy(checkpoint)
    levels, space = (
        coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2),
        fine_space(anatomy, SpaceName.ALL_BITS, round_to=8),
    )
    assert all(x.bits is None for x in options_of(levels, Site(1, FFN)))
    assert Option(32, 4) in options_of(space, Site(1, FFN))
    total = prices.decoder_bytes(anatomy).total
    limits = decoder_byte_limits(anatomy, space, int(0.6 * total))
    found = additive_architecture(levels, loss_of(levels), limits)
    assert {option.bits for site, option in found.items if site.sublayer is FFN} == {None}
    assert 0.5 * total < prices.decoder_bytes(anatomy).cost(found) <= 0.6 * total


def test_a_scan_serves_devices_among_which_some_weights_cannot_be_divided(anatomy: ModelAnatomy) -> None:
    """Two devices have half a group each of an output projection's inputs: it stays as it is."""
    levels, space = coarse_space(anatomy, SpaceName.BITS), fine_space(anatomy, SpaceName.BITS, round_to=8, tp_size=2)
    assert options_of(space, Site(0, ATTENTION)) == [Option(2)]
    assert space.places_of(levels) is not None
    total = prices.decoder_bytes(anatomy).total
    found = additive_architecture(levels, loss_of(levels), decoder_byte_limits(anatomy, space, int(0.6 * total)))
    assert {site.sublayer for site, _ in found.items} == {FFN}


def test_losses_between_levels_are_of_equal_bits(anatomy: ModelAnatomy) -> None:
    levels, space = (
        coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2),
        fine_space(anatomy, SpaceName.ALL_BITS, round_to=8),
    )
    found = interpolated_losses(levels, loss_of(levels), space)
    own = options_of(space, Site(1, FFN))
    assert (
        found[3, own.index(Option(32, 4))] == loss_of(levels)[3, options_of(levels, Site(1, FFN)).index(Option(32, 4))]
    )
    assert found[3, 0] == loss_of(levels)[3, 0] > 0  # skipped
    in_eight = [np.flatnonzero([x.bits == 8 or not x.units for x in d.options[0]]) for d in levels.decisions]
    alike = Space(tuple(d.take(k) for d, k in zip(levels.decisions, in_eight, strict=True)), levels.dense)
    assert np.array_equal(interpolated_losses(alike, loss_of(alike), alike), loss_of(alike))
    few = coarse_space(anatomy, SpaceName.ALL, num_levels=2)
    with pytest.raises(InputError, match="bits that were scanned"):
        interpolated_losses(few, np.zeros((few.num_decisions, int(few.counts.max()))), space)


def test_equal_bits_come_first(anatomy: ModelAnatomy) -> None:
    space = fine_space(anatomy, SpaceName.ALL_BITS, round_to=8)
    price = prices.decoder_bytes(anatomy)
    in_eight = Architecture.of({site: Option(units, 8) for site, units in space.dense.items()})
    exactly = decoder_byte_limits(anatomy, space, price.cost(in_eight))
    assert space.architecture(uniform_choice(exactly)) == in_eight
    assert space.architecture(uniform_choice(decoder_byte_limits(anatomy, space, price.total))) == DENSE


def test_bits_remove_no_parameters(anatomy: ModelAnatomy) -> None:
    space = fine_space(anatomy, SpaceName.BITS, round_to=8)
    with pytest.raises(InfeasibleTargetError, match=r"cannot exceed 0\.0"):
        limits_for_sparsity(anatomy, space, 0.1, Scope.DECODER)
    eight = Architecture.of({site: Option(units, 8) for site, units in space.dense.items()})
    assert achieved_costs(anatomy, eight).removed == achieved_costs(anatomy, DENSE).removed
