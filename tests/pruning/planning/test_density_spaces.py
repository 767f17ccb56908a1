"""The space of densities: its options, its limit to the weight, and the methods that choose in it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mcts.sensitivity import MAX_SCAN_EVALUATIONS, scan_choices, scan_table
from pruning.allocators.additive import additive_architecture
from pruning.allocators.evolution import mutate
from pruning.allocators.random_search import ChoiceSampler
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.devices.catalogue import DEVICES
from pruning.devices.latency import latency_model
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName, coarse_space, fine_space, name_of
from pruning.planning.cost import achieved_costs
from pruning.planning.density_spaces import DENSITIES
from pruning.planning.nonzero_weights import nonzero_weight_limits, nonzero_weights, zeroed_share
from pruning.planning.scope import Scope
from pruning.planning.space import Options, Space
from pruning.planning.target import counted, counted_budget, limits_for_sparsity
from pruning.planning.workload import Workload
from pruning.planning.zeroed import zeroed_weights
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> ModelAnatomy:
    """4 layers of D = 32: attention of 3,072 weights, FFN of 4,608."""
    return read_anatomy(save_tiny_checkpoint(tmp_path_factory.mktemp("densities")))


@pytest.fixture(scope="module")
def space(anatomy: ModelAnatomy) -> Space:
    return coarse_space(anatomy, SpaceName.DENSITY)


def test_the_options(anatomy: ModelAnatomy, space: Space) -> None:
    assert [x.sites[0] for x in space.decisions] == [Site(n, x) for n in range(4) for x in Sublayer]
    for decision in space.decisions:
        units = space.dense[decision.sites[0]]
        assert list(decision.options[0]) == [*(Option(units, density=d) for d in DENSITIES), Option(units)]
    assert name_of(space) is SpaceName.DENSITY
    assert SpaceName.DENSITY not in SPACES_OF_UNITS
    assert space.architecture(space.top) == DENSE
    assert Space.from_document(space.document()).document() == space.document()
    assert fine_space(anatomy, SpaceName.DENSITY, round_to=8, tp_size=2).document() == space.document()
    with pytest.raises(InputError, match="lists no tensors"):
        coarse_space(replace(anatomy, tensors=(), fingerprint="none"), SpaceName.DENSITY)
    choice = tuple(range(8))
    architecture = space.architecture(choice)
    assert space.choice_of(architecture) == choice
    assert anatomy.sizes(architecture) == DENSE
    assert architecture.densities(Sublayer.FFN, 4) == tuple(
        space.amounts[0][2 * n + 1] / space.amounts[0][-1] for n in range(4)
    )
    assert [row[-1] for row in space.amounts] == space.dense_units.tolist()
    assert space.steps_up[0] == (*((k + 1,) for k in range(8)), ())


def test_the_limit_counts_what_is_written(anatomy: ModelAnatomy, space: Space) -> None:
    """Random choices: weights of tables are those of plans; nothing else changes, the time on a device included."""
    price = nonzero_weights(anatomy)
    assert price.total == sum(
        x.shape[0] * x.shape[1] for x in anatomy.tensors if x.site is not None and x.axis is not None
    )
    assert counted(anatomy, SpaceName.DENSITY) is price
    limits = nonzero_weight_limits(anatomy, space, price.total)
    latency = latency_model(DEVICES["jetson-orin-nano-8gb"], anatomy, Workload())
    dense = achieved_costs(anatomy, DENSE, latency=latency)
    rng = np.random.default_rng(0)
    for _ in range(10):
        choice = rng.integers(0, space.counts)
        architecture = space.architecture(choice)
        zeros = sum(zeroed_weights(anatomy, architecture).values())
        assert int(limits.slack(choice)[0]) == zeros == price.total - price.cost(architecture)
        achieved = achieved_costs(anatomy, architecture, latency=latency)
        assert achieved == dense.model_copy(update={"zeroed": achieved.zeroed})
        assert achieved.zeroed[Scope.DECODER] == zeros / anatomy.decoder_parameters
    with pytest.raises(InputError, match="keep all their units"):
        price.of(Site(0, Sublayer.FFN), Options.of([Option(8)]))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.7, 0.8])
def test_equal_densities_meet_their_own_sparsity(anatomy: ModelAnatomy, space: Space, sparsity: float) -> None:
    """Whatever rounding in single weights takes or gives."""
    limits = limits_for_sparsity(anatomy, space, sparsity, Scope.DECODER)
    (option,) = {int(k) for k in uniform_choice(limits)}
    assert [*DENSITIES, 1.0][option] == pytest.approx(1.0 - sparsity)
    assert counted_budget(anatomy, limits) == limits.limits[0].most


def test_what_equal_densities_leave_is_filled_up(anatomy: ModelAnatomy, space: Space) -> None:
    limits = limits_for_sparsity(anatomy, space, 0.55, Scope.DECODER)
    chosen = uniform_choice(limits)
    assert limits.is_tight(chosen)
    assert chosen.min() == DENSITIES.index(0.4)
    assert chosen.max() <= DENSITIES.index(0.6)
    assert zeroed_share(anatomy, space.architecture(chosen)) == pytest.approx(0.55, abs=0.01)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.75])
def test_the_additive_program_is_the_best_of_all(anatomy: ModelAnatomy, space: Space, sparsity: float) -> None:
    few = Space(space.decisions[:3], {site: space.dense[site] for x in space.decisions[:3] for site in x.sites})
    price = nonzero_weights(anatomy)
    own = sum(price.of_dense[site] for site in few.dense)
    limits = nonzero_weight_limits(anatomy, few, price.total - round(sparsity * own))
    loss = np.stack([(1 + n) * (1.0 - row / row[-1]) ** 2 for n, row in enumerate(few.amounts)])
    found = few.choice_of(additive_architecture(few, loss, limits))
    assert found is not None
    every = np.array(list(itertools.product(*(range(k) for k in few.counts))))
    fitting = every[[bool((limits.slack(choice) >= 0).all()) for choice in every]]
    least = loss[np.arange(3), fitting].sum(axis=1).min()
    assert loss[np.arange(3), found].sum() == pytest.approx(least, rel=1e-9)


def test_other_searches_keep_to_the_limit(anatomy: ModelAnatomy, space: Space) -> None:
    limits = limits_for_sparsity(anatomy, space, 0.6, Scope.DECODER)
    rng, sampler = np.random.default_rng(0), ChoiceSampler(limits)
    parent = tuple(uniform_choice(limits).tolist())
    seen = {parent}
    for _ in range(10):
        for choice in (sampler.draw(rng), parent := mutate(limits, parent, rng)):
            assert (limits.slack(choice) >= 0).all()
            seen.add(choice)
    assert len(seen) > 10


def test_a_large_scan_is_measured_in_part_and_filled_in(space: Space) -> None:
    """By the squares of what is zeroed, where KL grows so: then what is filled in is what would have been measured."""
    assert len(scan_choices(space, MAX_SCAN_EVALUATIONS)) == 8 * 8 + 1
    choices = scan_choices(space, 1 + 8 + 8 + 4)
    # Each once at the least density, once in the middle between that and all, and four at another one.
    others = [{c[n] for c in choices} - {8} for n in range(8)]
    middle = DENSITIES.index(0.6)
    assert all({0, middle} <= own for own in others)
    assert sum(len(own) for own in others) == 8 + 8 + 4

    def kl(choice: tuple[int, ...]) -> float:
        shares = (1.0 - float(row[k] / row[-1]) for row, k in zip(space.amounts, choice, strict=True))
        return sum((1 + n) * share**2 for n, share in enumerate(shares))

    table = scan_table(space, {choice: kl(choice) for choice in choices})
    expected = np.array([[kl((*space.top[:n], k, *space.top[n + 1 :])) for k in range(9)] for n in range(8)])
    np.testing.assert_allclose(table, expected, rtol=1e-6, atol=1e-12)


def test_what_cannot_be_met(anatomy: ModelAnatomy, space: Space) -> None:
    with pytest.raises(InfeasibleTargetError) as caught:
        limits_for_sparsity(anatomy, space, 0.9, Scope.DECODER)
    assert caught.value.nearest is not None
    assert caught.value.nearest == pytest.approx(0.8, abs=1e-3)
    limits_for_sparsity(anatomy, space, caught.value.nearest, Scope.DECODER)
    for scope in (Scope.FFN, Scope.MODEL):
        with pytest.raises(InputError, match="Leave the scope out"):
            limits_for_sparsity(anatomy, space, 0.5, scope)
    cut = Architecture.of({Site(0, Sublayer.FFN): Option(8)})
    with pytest.raises(InputError, match="keep all their units"):
        nonzero_weights(anatomy).cost(cut)
