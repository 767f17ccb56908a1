"""Predictors of spaces with KV groups, skips and whole layers: they plan within budgets, and learn what interacts."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import pytest

from mcts.sensitivity import scan_choices
from policy_model.choosing import Parts
from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings, train_predictor
from pruning.allocators.additive_dp import cost_to_go
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import Limits
from pruning.planning.space import Choice, Space
from pruning.planning.target import decoder_parameter_limits, ffn_parameter_limits
from storage.records import Sample
from tests.tiny_models import save_tiny_checkpoint
from values.decisions import units_in

SETTINGS = TrainingSettings(
    num_levels=4,
    axes=SpaceName.ALL,
    seed=3,
    policy_rounds=2,
    policy_steps_per_round=60,
    problems_per_round=192,
    batch_size=32,
    policy_width=32,
    policy_blocks=1,
)
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
def predictor(anatomy: ModelAnatomy, space: Space) -> Predictor:
    return train_predictor(anatomy, samples_of(anatomy, space, 400), SETTINGS)


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


def test_the_policy_alone_is_better_than_an_untrained_one(
    anatomy: ModelAnatomy, space: Space, predictor: Predictor
) -> None:
    alone = Parts(walkers=0)
    weights, _ = predictor.to_bytes()
    assert weights
    rng = np.random.default_rng(1)
    policy = {name: rng.normal(0.0, 0.3, x.shape).astype(np.float32) for name, x in predictor._policy.items()}  # type: ignore[union-attr]
    kl = [
        geometric_mean(true_kl(anatomy, who.plan(anatomy, limits).architecture) for limits in limits_of(anatomy, space))
        for who in (predictor.with_parts(alone), predictor.with_parts(alone, policy))
    ]
    assert kl[0] < 0.9 * kl[1]


def test_it_is_stored_and_read_back(anatomy: ModelAnatomy, space: Space, predictor: Predictor, tmp_path: Path) -> None:
    predictor.save(tmp_path)
    read = Predictor.load(tmp_path)
    for limits in limits_of(anatomy, space):
        assert read.plan(anatomy, limits) == predictor.plan(anatomy, limits)


def test_coarser_widths_and_groups_of_a_request_are_kept_to(anatomy: ModelAnatomy, predictor: Predictor) -> None:
    """FFN widths of half the layer, and an attention that is kept whole or skipped."""
    fine = coarse_space(anatomy, SpaceName.ALL, num_levels=2)
    limits = decoder_parameter_limits(anatomy, fine, int(0.6 * anatomy.decoder_parameters))
    plan = predictor.plan(anatomy, limits)
    choice = fine.choice_of(plan.architecture)
    assert choice is not None
    assert (limits.table.spent(np.array([choice])) <= limits.spare).all()


def test_other_decisions_are_refused(anatomy: ModelAnatomy, predictor: Predictor) -> None:
    fine = ffn_widths(anatomy, round_to=8)
    with pytest.raises(InputError, match=r"decides what its samples differ in.*Ask for the space that was searched"):
        predictor.plan(anatomy, ffn_parameter_limits(anatomy, fine, anatomy.ffn_parameters // 2))


def test_layers_that_go_as_a_whole_are_learnt_too(anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, SpaceName.LAYERS)
    choices: list[Choice] = [tuple(int(x) for x in f"{n:03b}") for n in range(2**space.num_decisions)]
    assert space.num_decisions == 3
    samples = []
    for choice in choices:
        architecture = space.architecture(choice)
        kl = true_kl(anatomy, architecture)
        samples.append(Sample("m", "r" * 64, "c" * 64, architecture, Metrics(kl, 1.0, 0.5, 100, 50), 0.1, "test"))
    assert all(units_in(space, s.architecture) is not None for s in samples)
    with pytest.raises(InputError, match="at least 64 samples"):  # of eight there are
        train_predictor(anatomy, samples, replace(SETTINGS, axes=SpaceName.LAYERS))
