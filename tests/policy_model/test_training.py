"""Training as a whole: deterministic, resumable, and worth having."""

import dataclasses
import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from policy_model.checkpoint import STATE_FILE
from policy_model.predictor import Predictor
from policy_model.progress import TrainingProgress, progress_bar
from policy_model.schedule import scheduled
from policy_model.training import TrainingSettings, train_predictor
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import CheckpointError, InputError
from storage.records import Sample
from tests.policy_model.test_predictor import limits_of, planned_widths
from tests.values.landscape import true_kl


class Interrupted(Exception):  # noqa: N818
    """Stands for the process being killed."""


def test_plans_between_the_searched_budgets_beat_uniform(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    """Searched were 30, 45 and 60% sparsity."""
    ratios = []
    for sparsity in (0.35, 0.4, 0.5, 0.55, 0.65):
        budget = int((1.0 - sparsity) * anatomy.ffn_parameters)
        limits = limits_of(anatomy, budget)
        planned = true_kl(anatomy, planned_widths(predictor, anatomy, limits))
        ratios.append(planned / true_kl(anatomy, limits.units_of(uniform_choice(limits))))
    assert max(ratios) < 0.9
    assert math.prod(ratios) ** (1 / len(ratios)) < 0.7


def test_predictions_are_near_the_truth(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    for sparsity in (0.35, 0.5, 0.55):
        prediction = predictor.plan(anatomy, limits_of(anatomy, int((1.0 - sparsity) * anatomy.ffn_parameters)))
        assert prediction.kl == pytest.approx(true_kl(anatomy, anatomy.ffn_widths(prediction.architecture)), rel=0.25)


def test_the_policy_has_learnt_the_experts(predictor: Predictor) -> None:
    """Held-out experts: below log 4 = 1.39 nats a decision, which is guessing."""
    assert predictor.metrics["policy_error_nats"] < 1.0
    assert predictor.metrics["num_experts"] == 48


def test_equal_arguments_give_equal_weights_in_any_order(
    predictor: Predictor, anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings
) -> None:
    torch.manual_seed(99)  # a global seed must not matter
    again = train_predictor(anatomy, samples[::-1], settings)
    assert again.to_bytes() == predictor.to_bytes()
    other = train_predictor(anatomy, samples, dataclasses.replace(settings, seed=4, policy_rounds=1))
    assert other.to_bytes()[0] != predictor.to_bytes()[0]


@pytest.mark.parametrize("killed_at", [(7,), (10, 31), (34, 58)])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    predictor: Predictor,
    anatomy: ModelAnatomy,
    samples: list[Sample],
    settings: TrainingSettings,
    tmp_path: Path,
    killed_at: tuple[int, ...],
) -> None:
    """Killed in the first round, at the change to the second, and in both."""
    for step in killed_at:

        def kill(progress: TrainingProgress, step: int = step) -> None:
            if progress.step == step:
                raise Interrupted

        with pytest.raises(Interrupted):
            train_predictor(anatomy, samples, settings, progress=kill, checkpoint_folder=tmp_path)
    steps: list[int] = []
    resumed = train_predictor(
        anatomy, samples, settings, progress=lambda p: steps.append(p.step), checkpoint_folder=tmp_path
    )
    assert steps[0] == killed_at[-1] // 5 * 5 + 1
    assert resumed.to_bytes() == predictor.to_bytes()
    assert len(list(tmp_path.iterdir())) == 2  # one state: JSON and tensors


def test_a_folder_of_another_training_is_refused(
    anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings, tmp_path: Path
) -> None:
    def kill(progress: TrainingProgress) -> None:
        if progress.step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_predictor(anatomy, samples, settings, progress=kill, checkpoint_folder=tmp_path)
    for other_samples, other in ((samples[1:], settings), (samples, dataclasses.replace(settings, seed=8))):
        with pytest.raises(CheckpointError, match="same settings, model and samples"):
            train_predictor(anatomy, other_samples, other, checkpoint_folder=tmp_path)
    (tmp_path / "training-5.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="must be complete"):
        train_predictor(anatomy, samples, settings, checkpoint_folder=tmp_path)
    (tmp_path / STATE_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="must be complete"):
        train_predictor(anatomy, samples, settings, checkpoint_folder=tmp_path)


def test_errors_come_before_the_work(anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings) -> None:
    def never(progress: TrainingProgress) -> None:
        raise Interrupted

    with pytest.raises(InputError, match="lop search"):
        train_predictor(anatomy, samples[:30], settings, progress=never)
    with pytest.raises(InputError, match="too narrow for 16 levels"):
        train_predictor(anatomy, samples, dataclasses.replace(settings, num_levels=16), progress=never)
    with pytest.raises(InputError, match="policy_rounds must be at least 1"):
        dataclasses.replace(settings, policy_rounds=0)
    with pytest.raises(InputError, match="experts_per_round must be at least 8"):
        dataclasses.replace(settings, experts_per_round=4)


def test_training_ends_when_a_round_gains_nothing(
    anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings
) -> None:
    """With updates that are too small to matter, the first round is the last."""
    still = dataclasses.replace(settings, policy_learning_rate=1e-12, policy_rounds=3)
    seen: list[TrainingProgress] = []
    train_predictor(anatomy, samples, still, progress=seen.append)
    last = seen[-1]
    assert last.step == last.num_steps == still.policy_steps_per_round
    train_predictor(anatomy, samples, dataclasses.replace(still, policy_learning_rate=2e-3), progress=seen.append)
    assert seen[-1].step > still.policy_steps_per_round


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
