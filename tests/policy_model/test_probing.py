"""Probes measure what the values would plan where nothing was searched, and the values are better there for it."""

from dataclasses import replace

import numpy as np
import pytest

from policy_model.predictor import Predictor
from policy_model.probing import SOURCE, Probe, probe
from policy_model.training import TrainingSettings, predictor_of_values
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space, fine_space
from pruning.planning.limits import Limits
from pruning.planning.prices import parameters
from pruning.planning.target import decoder_parameter_limits
from storage.records import Sample
from tests.policy_model.test_joint_spaces import samples_of, true_kl
from tests.tiny_models import save_tiny_checkpoint

COUNT = 24
KEPT = np.linspace(0.35, 0.9, 12)
"""Of the decoder's parameters, where plans are judged."""


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> ModelAnatomy:
    return read_anatomy(save_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def joint(settings: TrainingSettings) -> TrainingSettings:
    return replace(settings, axes=SpaceName.ALL)


@pytest.fixture(scope="module")
def searched(anatomy: ModelAnatomy) -> list[Sample]:
    """Of the scan and of few others."""
    return samples_of(anatomy, coarse_space(anatomy, SpaceName.ALL, num_levels=4), 110)


@pytest.fixture(scope="module")
def found(anatomy: ModelAnatomy, joint: TrainingSettings, searched: list[Sample]) -> list[Probe]:
    return probe(anatomy, searched, joint, MeasuredBy(anatomy), COUNT)


class MeasuredBy:
    """The made-up KL, and what was asked for."""

    def __init__(self, anatomy: ModelAnatomy) -> None:
        self.anatomy = anatomy
        self.asked: list[Architecture] = []

    def __call__(self, architecture: Architecture) -> Metrics:
        self.asked.append(architecture)
        kl = true_kl(self.anatomy, architecture)
        return Metrics(kl, 1.0 + kl, 0.5, 100, 50, 0.5)


def test_a_probe_is_measured_once_and_of_something_new(
    anatomy: ModelAnatomy, joint: TrainingSettings, searched: list[Sample], found: list[Probe]
) -> None:
    score, told = MeasuredBy(anatomy), list[tuple[int, Probe | None]]()
    again = probe(anatomy, searched[::-1], joint, score, COUNT, on_probe=lambda *of: told.append(of))
    assert again == found  # whatever the order of the samples
    assert score.asked == [each.architecture for each in found]
    assert len({*score.asked, *(sample.architecture for sample in searched)}) == len(searched) + len(found)
    assert [number for number, _ in told] == [*range(1, COUNT + 1)]
    assert [new for _, new in told if new is not None] == found
    assert all(each.metrics.kl == true_kl(anatomy, each.architecture) for each in found)


def test_probes_are_spread_over_what_was_searched_and_over_both_halves(
    anatomy: ModelAnatomy, found: list[Probe]
) -> None:
    price = parameters(anatomy)
    kept = sorted(price.cost(each.architecture) - price.fixed for each in found)
    assert kept[0] < 0.5 * anatomy.decoder_parameters < 0.75 * anatomy.decoder_parameters < kept[-1]
    cuts = [{site.sublayer for site, _ in each.architecture.items} for each in found]
    assert set(Sublayer) in cuts


@pytest.mark.parametrize("fixed", [0.0, 0.5])
def test_plans_between_searched_budgets_are_better_and_better_foretold(
    anatomy: ModelAnatomy, joint: TrainingSettings, searched: list[Sample], found: list[Probe], fixed: float
) -> None:
    learnt = [
        *searched,
        *(replace(searched[0], architecture=x.architecture, metrics=x.metrics, source=SOURCE) for x in found),
    ]
    limits = [limited(anatomy, kept, fixed) for kept in KEPT]
    before, after = (
        judged(anatomy, limits, predictor_of_values(anatomy, samples, joint)) for samples in (searched, learnt)
    )
    assert after[0] < before[0]
    assert after[1] < 0.5 * before[1]


def limited(anatomy: ModelAnatomy, kept: float, fixed: float) -> Limits:
    """A limit of that share of what the decoder costs: its parameters, or a time of which `fixed` is for running each
    sub-layer at all."""
    space = fine_space(anatomy, SpaceName.ALL, round_to=8)
    limits = decoder_parameter_limits(anatomy, space, int(kept * anatomy.decoder_parameters))
    (limit,) = limits.limits
    charge = np.mean([row[-1] for row in limit.costs])
    costs = tuple(np.rint((1 - fixed) * row + fixed * charge * (row > 0)).astype(np.int64) for row in limit.costs)
    return Limits(space, (replace(limit, costs=costs),))


def judged(anatomy: ModelAnatomy, limits: list[Limits], predictor: Predictor) -> tuple[float, float]:
    """The plans' KL, as a geometric mean, and the mean error of what was expected of them, in log KL."""
    plans = [predictor.plan(anatomy, limit) for limit in limits]
    kl = np.log([true_kl(anatomy, plan.architecture) for plan in plans])
    return float(np.exp(kl.mean())), float(np.abs(np.log([plan.kl for plan in plans]) - kl).mean())
