"""Training as a whole: deterministic, resumable, and worth having."""

import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import pytest
import torch
from rich.console import Console

from policy_model.checkpoint import STATE_FILE
from policy_model.choosing import Parts
from policy_model.policy import Policy
from policy_model.policy_training import PolicyTraining
from policy_model.predictor import Predictor
from policy_model.progress import TrainingProgress, progress_bar
from policy_model.schedule import scheduled
from policy_model.training import LOOKS_PER_ROUND, PATIENCE, TrainingSettings, train_predictor
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import CheckpointError, InputError
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.space import Space
from storage.records import Sample
from tests.policy_model.test_predictor import limits_of, planned_widths
from tests.values.landscape import true_kl
from values.calibration import kl_of
from values.kl_floor import log_kl
from values.values import Values

ALONE = Parts(ways=False, walkers=0)
"""The policy's most likely configuration and its samples, the best by the values."""


class Interrupted(Exception):  # noqa: N818
    """Stands for the process being killed."""


def untrained(predictor: Predictor) -> Predictor:
    """With the same values and a policy that nothing was taught."""
    torch.manual_seed(5)
    policy = {name: p.numpy() for name, p in Policy(predictor.config).state_dict().items()}
    return predictor.with_parts(ALONE, policy)


def limits_of_every_kind(anatomy: ModelAnatomy) -> list[Limits]:
    """Parameters, latency in stairs of 24 channels, and both; of what was searched, and in between."""
    fine = ffn_widths(anatomy, round_to=8)
    stairs = tuple(1000 * (n % 3 + 2) * -(-row // 24) for n, row in enumerate(fine.units))
    found = []
    for sparsity in (0.25, 0.35, 0.4, 0.5, 0.55, 0.65):
        parameters = ffn_parameters(anatomy).limit(fine, int((1.0 - sparsity) * anatomy.ffn_parameters))
        latency = Limit(LimitKind.LATENCY_MS, int((1.0 - sparsity) * sum(int(row[-1]) for row in stairs)), 0, stairs)
        found += [Limits(fine, of) for of in ((parameters,), (latency,), (parameters, latency))]
    return found


Judge = Callable[[Sequence[int]], float]


def mean_kl(anatomy: ModelAnatomy, predictor: Predictor, judge: Judge) -> float:
    """Geometric mean of what `judge` says of the plans' widths."""
    return geometric_mean(judge(planned_widths(predictor, anatomy, limits)) for limits in limits_of_every_kind(anatomy))


def best_mean_kl(anatomy: ModelAnatomy, space: Space, judge: Judge) -> float:
    """The same of the best of all choices of the space."""
    every = [space.units_of(choice) for choice in itertools.product(range(4), repeat=6)]
    kl, best = np.array([judge(widths) for widths in every]), []
    for limits in limits_of_every_kind(anatomy):
        choices = np.array([limits.space.choice_of(anatomy.architecture(widths)) for widths in every])
        best.append(float(kl[(limits.table.spent(choices) <= limits.spare).all(axis=1)].min()))
    return geometric_mean(best)


@pytest.mark.parametrize("by", ["the values", "the truth"])
def test_the_policy_alone_plans_well_and_an_untrained_one_does_not(
    predictor: Predictor, anatomy: ModelAnatomy, space: Space, by: str
) -> None:
    """Without memory and descent: as well as with them, and as the best choice of the searched space, or better, where
    finer widths are allowed. By what the policy was taught, and by the formula that the samples are of."""

    def expected(widths: Sequence[int]) -> float:
        return kl_of(float(predictor.values(predictor.encoding.kept_fractions([widths]))[0]))

    judge = expected if by == "the values" else lambda widths: true_kl(anatomy, widths)
    alone = mean_kl(anatomy, predictor.with_parts(ALONE), judge)
    assert alone < 1.05 * mean_kl(anatomy, predictor, judge)
    assert alone < best_mean_kl(anatomy, space, judge)
    assert mean_kl(anatomy, untrained(predictor), judge) > 1.2 * alone


def test_the_values_have_learnt_the_truth(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    """Where nothing was searched; without what they learnt from samples they are off by more."""
    values = predictor.values
    tensors = values.tensors
    ignorant = Values(
        values.basis, values.kernel, tensors | {k: np.zeros_like(tensors[k]) for k in ("alpha", "readout")}
    )

    def error(judge: Values) -> float:
        plans = [
            planned_widths(predictor, anatomy, limits_of(anatomy, int((1.0 - sparsity) * anatomy.ffn_parameters)))
            for sparsity in (0.35, 0.5, 0.55)
        ]
        found = judge(predictor.encoding.kept_fractions(plans))
        return float(np.abs(found - [log_kl(true_kl(anatomy, widths)) for widths in plans]).max())

    assert error(values) < 0.2
    assert error(ignorant) > 0.3


def test_held_out_problems_tell_what_was_learnt(
    predictor: Predictor, anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings
) -> None:
    still = dataclasses.replace(settings, policy_learning_rate=1e-12, policy_rounds=1, policy_steps_per_round=5)
    guessing = train_predictor(anatomy, samples, still)
    assert predictor.metrics["policy_error_nats"] < 0.7 * guessing.metrics["policy_error_nats"]
    assert predictor.metrics["policy_excess_log_kl"] < 0.1 < 0.3 < guessing.metrics["policy_excess_log_kl"]
    assert predictor.metrics["num_problems"] in (192, 384)


def test_equal_arguments_give_equal_weights_in_any_order(
    predictor: Predictor, anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings
) -> None:
    torch.manual_seed(99)  # a global seed must not matter
    skipped = dataclasses.replace(samples[0], architecture=Architecture.of({Site(0, Sublayer.FFN): Option(0)}))
    again = train_predictor(anatomy, [skipped, *samples[::-1]], settings)  # which is left out
    assert again.to_bytes() == predictor.to_bytes()
    other = train_predictor(anatomy, samples, dataclasses.replace(settings, seed=4, policy_rounds=1))
    assert other.to_bytes()[0] != predictor.to_bytes()[0]


@pytest.fixture(scope="module")
def short(settings: TrainingSettings) -> TrainingSettings:
    """Two rounds of 40 steps each, which nothing is expected of but that they are what they are."""
    return dataclasses.replace(settings, problems_per_round=64)


@pytest.fixture(scope="module")
def to_the_end(anatomy: ModelAnatomy, samples: list[Sample], short: TrainingSettings) -> Predictor:
    """A training of all its rounds, however well it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("policy_model.training.PATIENCE", 100)
        return train_predictor(anatomy, samples, short)


@pytest.mark.parametrize("killed_at", [(10, 41), (44, 78)])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    to_the_end: Predictor,
    anatomy: ModelAnatomy,
    samples: list[Sample],
    short: TrainingSettings,
    tmp_path: Path,
    killed_at: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the first round and at the change to the second, and twice in the second."""
    monkeypatch.setattr("policy_model.training.PATIENCE", 100)
    for step in killed_at:

        def kill(progress: TrainingProgress, step: int = step) -> None:
            if progress.step == step:
                raise Interrupted

        with pytest.raises(Interrupted):
            train_predictor(anatomy, samples, short, progress=kill, checkpoint_folder=tmp_path)
    steps: list[int] = []
    resumed = train_predictor(
        anatomy, samples, short, progress=lambda p: steps.append(p.step), checkpoint_folder=tmp_path
    )
    assert steps[0] == killed_at[-1] // 5 * 5 + 1
    assert steps[-1] == 80
    assert resumed.metrics["num_problems"] == 128
    assert resumed.to_bytes() == to_the_end.to_bytes()
    assert len(list(tmp_path.iterdir())) == 2  # one state: JSON and tensors


def test_a_folder_of_another_training_is_refused(
    anatomy: ModelAnatomy, samples: list[Sample], short: TrainingSettings, tmp_path: Path
) -> None:
    def kill(progress: TrainingProgress) -> None:
        if progress.step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_predictor(anatomy, samples, short, progress=kill, checkpoint_folder=tmp_path)
    for other_samples, other in ((samples[1:], short), (samples, dataclasses.replace(short, seed=8))):
        with pytest.raises(CheckpointError, match="same settings, model and samples"):
            train_predictor(anatomy, other_samples, other, checkpoint_folder=tmp_path)
    (tmp_path / "training-5.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="must be complete"):
        train_predictor(anatomy, samples, short, checkpoint_folder=tmp_path)
    (tmp_path / STATE_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="must be complete"):
        train_predictor(anatomy, samples, short, checkpoint_folder=tmp_path)


def test_errors_come_before_the_work(anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings) -> None:
    def never(progress: TrainingProgress) -> None:
        raise Interrupted

    with pytest.raises(InputError, match="lop search"):
        train_predictor(anatomy, samples[:30], settings, progress=never)
    with pytest.raises(InputError, match="too narrow for 16 levels"):
        train_predictor(anatomy, samples, dataclasses.replace(settings, num_levels=16), progress=never)
    with pytest.raises(InputError, match="policy_rounds must be at least 1"):
        dataclasses.replace(settings, policy_rounds=0)
    with pytest.raises(InputError, match="problems_per_round must be at least 1"):
        dataclasses.replace(settings, problems_per_round=0)


def test_training_ends_when_proposals_get_no_better(
    anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first look finds what is better than nothing."""
    monkeypatch.setattr(PolicyTraining, "excess", lambda _: 0.5)
    seen: list[TrainingProgress] = []
    train_predictor(anatomy, samples, settings, progress=seen.append)
    assert seen[-1].step == seen[-1].num_steps == (1 + PATIENCE) * settings.policy_steps_per_round // LOOKS_PER_ROUND


def test_progress_is_reported_and_shown() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_bar(console) as show:
        show(TrainingProgress("policy", 3, 4, loss=0.5, error=0.25))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "training the policy" in shown
    assert "3/4" in shown
    assert "0.250" in shown


def test_the_learning_rate_warms_up_and_ends_low() -> None:
    assert scheduled(1.0, 0, 100) == pytest.approx(1 / 20)
    assert scheduled(1.0, 50, 100) == pytest.approx(0.51)
    assert scheduled(1.0, 100, 100) == pytest.approx(0.02)
