"""Predictors of spaces with KV groups, skips and whole layers: they plan within budgets, and learn what interacts."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from benchmarks.subject import REFERENCE
from mcts.sensitivity import scan_choices
from policy_model.choosing import Parts
from policy_model.model_features import NUM_KINDS
from policy_model.policy import Policy
from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings, train_predictor
from pruning.allocators.additive_dp import cost_to_go
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space, fine_space
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import Limits
from pruning.planning.prices import LatencyPrice, memory_bytes, parameters
from pruning.planning.space import Space
from pruning.planning.target import decoder_parameter_limits, ffn_parameter_limits
from pruning.planning.workload import Workload
from storage.records import Sample
from tests.pruning.made_up_devices import made_up_profile
from tests.tiny_models import save_tiny_checkpoint

KEPT = (0.85, 0.7, 0.55, 0.4)
"""Of the decoder's parameters."""


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> ModelAnatomy:
    return read_anatomy(save_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def true_kl(anatomy: ModelAnatomy, architecture: Architecture) -> float:
    """What is lost grows with every cut it passes later on; a skip beside a skip is far worse than both alone."""
    options = architecture.options
    lost, before = 0.0, 0.0
    for layer in anatomy.layers:
        for sublayer in (Sublayer.ATTENTION, Sublayer.FFN):
            dense = layer.units(sublayer)
            p = 1.0 - options.get(Site(layer.index, sublayer), Option(dense)).units / dense
            scale = 0.02 * math.exp(1.5 * math.sin(2.4 * layer.index + (sublayer is Sublayer.FFN)))
            lost = lost * (1.0 + 0.5 * p) + scale * p**1.7 + 0.08 * (before * p) ** 3
            before = p
    return 3.0 * (1.0 - math.exp(-lost / 3.0))


def samples_of(anatomy: ModelAnatomy, space: Space, count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    choices = {tuple(choice) for choice in scan_choices(space)}
    while len(choices) < count:
        depth = rng.uniform(0.05, 0.8)
        kept = np.rint(np.array(space.top) * np.clip(rng.normal(1.0 - depth, 0.3, space.num_decisions), 0.0, 1.0))
        choices.add(tuple(kept.astype(int).tolist()))
    found = []
    for choice in sorted(choices):
        architecture = space.architecture(choice)
        kl = true_kl(anatomy, architecture)
        metrics = Metrics(kl, 1.0 + kl, math.exp(-kl), 100, 50, math.exp(-kl))
        found.append(Sample("m", "r" * 64, "c" * 64, architecture, metrics, 0.1, "test"))
    return found


@pytest.fixture(scope="module")
def space(anatomy: ModelAnatomy) -> Space:
    return coarse_space(anatomy, SpaceName.ALL, num_levels=4)


@pytest.fixture(scope="module")
def predictor(anatomy: ModelAnatomy, space: Space, settings: TrainingSettings) -> Predictor:
    """With a policy, as rounds train it."""
    settings = replace(settings, axes=SpaceName.ALL, policy=True)
    return train_predictor(anatomy, samples_of(anatomy, space, 400), settings)


def limits_of(anatomy: ModelAnatomy, space: Space) -> list[Limits]:
    return [decoder_parameter_limits(anatomy, space, int(kept * anatomy.decoder_parameters)) for kept in KEPT]


def additive(anatomy: ModelAnatomy, limits: Limits) -> Architecture:
    """The optimum if all cuts added up."""
    space = limits.space
    table = np.zeros((space.num_decisions, int(space.counts.max())))
    for n, row in enumerate(space.units):
        for k in range(len(row)):
            table[n, k] = true_kl(anatomy, space.architecture((*space.top[:n], k, *space.top[n + 1 :])))
    spare = int(limits.spare[0])
    best = limits.fit(cost_to_go(limits.table, table, spare).best_choice(spare), -table)
    return space.architecture(best)


def test_plans_keep_to_budgets_and_beat_the_additive_program(
    anatomy: ModelAnatomy, space: Space, predictor: Predictor
) -> None:
    planned, added = [], []
    for limits in limits_of(anatomy, space):
        plan = predictor.plan(anatomy, limits)
        choice = space.choice_of(plan.architecture)
        assert choice is not None
        assert (limits.table.spent(np.array([choice])) <= limits.spare).all()
        planned.append(true_kl(anatomy, plan.architecture))
        added.append(true_kl(anatomy, additive(anatomy, limits)))
    assert geometric_mean(planned) < 0.97 * geometric_mean(added)


def test_no_policy_is_trained_that_no_plan_hears(
    anatomy: ModelAnatomy, space: Space, settings: TrainingSettings, predictor: Predictor
) -> None:
    usual = train_predictor(anatomy, samples_of(anatomy, space, 400), replace(settings, axes=SpaceName.ALL))
    tensors, config = usual.to_bytes()
    assert config["policy"] is None
    assert "policy_error_nats" not in config["info"]["metrics"]
    assert not usual.lacks_policy
    again = Predictor.from_bytes(tensors, config)
    heard = predictor.with_parts(Parts())
    plans = [[who.plan(anatomy, x) for x in limits_of(anatomy, space)] for who in (usual, again, predictor, heard)]
    assert plans[0] == plans[1] == plans[2]
    assert plans[2] != plans[3]


def test_the_policy_alone_is_better_than_an_untrained_one(
    anatomy: ModelAnatomy, space: Space, predictor: Predictor
) -> None:
    alone = Parts(ways=False, walkers=0)
    torch.manual_seed(0)
    untrained = {name: p.detach().numpy() for name, p in Policy(predictor.config).state_dict().items()}
    kl = [
        geometric_mean(true_kl(anatomy, who.plan(anatomy, limits).architecture) for limits in limits_of(anatomy, space))
        for who in (predictor.with_parts(alone), predictor.with_parts(alone, untrained))
    ]
    assert kl[0] < 0.75 * kl[1]


def test_what_it_proposes_to_a_search_are_options_of_the_space(
    anatomy: ModelAnatomy, space: Space, predictor: Predictor
) -> None:
    """Decisions have different numbers of options; in a predictor, all as many."""
    spare = predictor.encoding.most_parameters - predictor.encoding.least_parameters
    for share in (0.3, 0.6, 1.0):
        choice = predictor.propose(int(share * spare))
        assert all(0 <= k < count for k, count in zip(choice, space.counts, strict=True))
        assert parameters(anatomy).cost(space.architecture(choice)) <= (
            parameters(anatomy).cost(space.architecture(space.bottom)) + int(share * spare)
        )
    few = int(np.argmin(space.counts))
    prior = predictor.prior(space.top[:few], spare)
    assert prior.sum() == pytest.approx(1.0)
    assert not prior[space.counts[few] :].any()
    assert len(prior) == space.counts.max() > space.counts[few]


def test_it_is_stored_and_read_back(anatomy: ModelAnatomy, space: Space, predictor: Predictor, tmp_path: Path) -> None:
    predictor.save(tmp_path)
    read = Predictor.load(tmp_path)
    for limits in limits_of(anatomy, space):
        assert read.plan(anatomy, limits) == predictor.plan(anatomy, limits)


@pytest.mark.parametrize("kept", [0.9, 0.75, 0.6])
def test_budgets_of_time_are_kept_to_where_attention_costs_most_of_it(
    anatomy: ModelAnatomy, predictor: Predictor, kept: float
) -> None:
    """Both by tables that a machine was measured for and by a data sheet, with a limit on memory beside them."""
    bench = profiled_device(made_up_profile(anatomy=anatomy, attention=True))
    workload = Workload(prompt_tokens=12, output_tokens=4)
    fine, memory = fine_space(anatomy, SpaceName.ALL, round_to=8), memory_bytes(anatomy, workload)
    for device in (bench, DEVICES["l4"]):
        price = LatencyPrice(anatomy, latency_model(device, anatomy, workload))
        least = price.limit(fine, 0).least
        most = least + int(kept * (price.total - least))
        limits = Limits(fine, (price.limit(fine, most), memory.limit(fine, int(0.98 * memory.total))))
        plan = predictor.plan(anatomy, limits)
        choice = fine.choice_of(plan.architecture)
        assert choice is not None
        assert price.cost(plan.architecture) <= most
        assert limits.is_tight(choice)
        assert not plan.below_space


@pytest.mark.parametrize(("round_to", "tp_size"), [(8, 1), (48, 1), (8, 2), (8, 4)])
def test_rounding_and_sharing_of_a_request_are_kept_to(
    anatomy: ModelAnatomy, predictor: Predictor, round_to: int, tp_size: int
) -> None:
    """Where they leave one option of a decision, it is that one."""
    fine = fine_space(anatomy, SpaceName.ALL, round_to=round_to, tp_size=tp_size)
    assert (fine.counts == 1).any() == (round_to == 48 or tp_size == 4)
    limits = decoder_parameter_limits(anatomy, fine, int(0.6 * anatomy.decoder_parameters))
    plan = predictor.plan(anatomy, limits)
    choice = fine.choice_of(plan.architecture)
    assert choice is not None
    assert (limits.table.spent(np.array([choice])) <= limits.spare).all()
    assert limits.is_tight(np.array(choice))


def test_other_decisions_are_refused(anatomy: ModelAnatomy, predictor: Predictor) -> None:
    fine = ffn_widths(anatomy, round_to=8)
    with pytest.raises(InputError, match=r"decides what its samples differ in.*Ask for the space that was searched"):
        predictor.plan(anatomy, ffn_parameter_limits(anatomy, fine, anatomy.ffn_parameters // 2))


@pytest.mark.parametrize("name", [SpaceName.LAYERS, SpaceName.ATTENTION])
def test_spaces_of_one_axis_are_learnt_too(name: SpaceName, settings: TrainingSettings) -> None:
    anatomy = read_anatomy(REFERENCE / "model")
    space = coarse_space(anatomy, name)
    samples = samples_of(anatomy, space, 250)
    found = train_predictor(anatomy, samples, replace(settings, axes=name, num_levels=8))
    fine = fine_space(anatomy, name, round_to=8)
    planned, drawn = [], []
    for kept in (0.85, 0.7):
        limits = decoder_parameter_limits(anatomy, fine, int(kept * anatomy.decoder_parameters))
        plan = found.plan(anatomy, limits)
        assert fine.choice_of(plan.architecture) is not None
        planned.append(true_kl(anatomy, plan.architecture))
        within = [s for s in samples if parameters(anatomy).cost(s.architecture) <= limits.limits[0].most]
        drawn.append(np.quantile([true_kl(anatomy, s.architecture) for s in within], 0.1))
    assert geometric_mean(planned) < geometric_mean(drawn)  # better than nine in ten random ones, within the budget


def test_a_predictor_of_before_there_were_kinds_plans_the_same(
    anatomy: ModelAnatomy, space: Space, predictor: Predictor
) -> None:
    """Format version 4 told the policy no kinds: of an FFN there is nothing to tell."""
    weights, config = predictor.to_bytes()
    tensors = load(weights)
    without = dict(tensors)
    without["policy.read_decision.weight"] = np.ascontiguousarray(
        tensors["policy.read_decision.weight"][:, :-NUM_KINDS]
    )
    silent = dict(tensors)
    silent["policy.read_decision.weight"] = tensors["policy.read_decision.weight"].copy()
    silent["policy.read_decision.weight"][:, -NUM_KINDS:] = 0.0
    old = Predictor.from_bytes(save(without), config | {"format_version": 4})
    new = Predictor.from_bytes(save(silent), config)
    for limits in limits_of(anatomy, space):
        assert old.plan(anatomy, limits) == new.plan(anatomy, limits)
