"""Training a predictor from stored samples: first the values, then the policy against them.

The three stages, visible in `train_predictor`:
1. `fit_values`: the values learn from all samples, and stop where held-out data says so.
2. `fit_policy`: rounds of expert iteration. Experts for random budgets are found on the values, starting from the
   samples and from the policy's own proposals; the policy imitates them and the best samples.
3. The residuals of what was held out become the interval of every later prediction.

Every step is a function of the state, the step's number and the seed, so a training that was interrupted and goes on
from its checkpoint ends with the same weights as one that was not.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from policy_model.calibration import Calibration
from policy_model.checkpoint import (
    TrainingCheckpoint,
    TrainingState,
    optimizer_tensors,
    restore_optimizer,
    with_prefix,
)
from policy_model.dataset import TrainingData, check_samples, held_out, samples_sha256, training_data
from policy_model.encoding import Encoding, encode
from policy_model.model import ModelConfig, PlanModel
from policy_model.policy_training import PolicyTraining
from policy_model.predictor import Predictor, PredictorInfo
from policy_model.progress import ProgressCallback, TrainingProgress
from policy_model.value_training import ValueTraining
from pruning.anatomy import ModelAnatomy
from pruning.errors import InputError
from pruning.levels import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO, LevelGrid
from storage.records import Sample

NUM_PROBES = 2
VALUE_CHECK_EVERY_STEPS = 10
VALUE_PATIENCE_STEPS = 40
POLICY_CHECK_EVERY_STEPS = 20


@dataclass(frozen=True)
class TrainingSettings:
    """What a training is a function of, beside the model and the samples.

    The grid (`num_levels`, `round_to`) should be that of the search: only samples on the grid can be imitated.
    """

    num_levels: int = DEFAULT_NUM_LEVELS
    round_to: int = DEFAULT_ROUND_TO
    seed: int = 0
    value_steps: int = 80
    value_learning_rate: float = 2e-3
    policy_rounds: int = 4
    policy_steps_per_round: int = 80
    policy_learning_rate: float = 2e-3
    experts_per_round: int = 64
    batch_size: int = 64
    policy_width: int = 96
    policy_blocks: int = 3
    num_members: int = 4
    checkpoint_every_steps: int = 40

    def __post_init__(self) -> None:
        for name in ("policy_rounds", "policy_steps_per_round", "value_steps", "batch_size", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", values=str(getattr(self, name)))
        if self.experts_per_round < 8 or not 2 <= self.num_members <= 8:
            raise InputError(
                "experts_per_round must be at least 8 and num_members between 2 and 8",
                values=f"experts_per_round={self.experts_per_round}, num_members={self.num_members}",
            )


def train_predictor(
    anatomy: ModelAnatomy,
    samples: Sequence[Sample],
    settings: TrainingSettings,
    *,
    progress: ProgressCallback | None = None,
    checkpoint_folder: Path | None = None,
) -> Predictor:
    """A predictor for `anatomy`. Equal arguments give equal weights, in whatever order the samples come.

    With a `checkpoint_folder`, an interrupted training of the same arguments goes on from there.

    Raises:
        InputError: too few samples, samples of other models, or a layer too narrow for the grid.
        CheckpointError: the folder holds another training, or cannot be used.
    """
    samples = check_samples(anatomy, samples)
    grid = LevelGrid.build(anatomy, num_levels=settings.num_levels, round_to=settings.round_to)
    encoding = encode(anatomy, grid, samples)
    data = training_data(grid, encoding, samples)
    info = PredictorInfo(
        fingerprint=anatomy.fingerprint,
        num_samples=len(samples),
        samples_sha256=samples_sha256(samples),
        calibration_id=samples[0].calibration_id,
        ranking_sha256=samples[0].ranking_sha256,
        seed=settings.seed,
    )
    checkpoint = None
    if checkpoint_folder is not None:
        key = json.dumps([asdict(settings), info.fingerprint, info.calibration_id, info.ranking_sha256])
        run_key = hashlib.sha256((key + info.samples_sha256).encode()).hexdigest()
        checkpoint = TrainingCheckpoint(checkpoint_folder, run_key)
    run = _Run(settings, encoding, data, checkpoint, progress)
    run.fit_values()
    run.fit_policy()
    calibration = Calibration.measure(run.value_training.held_out_scores(), run.value_training.fit.noise)
    return Predictor(run.model, encoding, calibration, replace(info, metrics=run.metrics()))


class _Run:
    """One training: its state, how it is saved, and its two loops."""

    def __init__(
        self,
        settings: TrainingSettings,
        encoding: Encoding,
        data: TrainingData,
        checkpoint: TrainingCheckpoint | None,
        progress: ProgressCallback | None,
    ) -> None:
        self.settings, self.checkpoint, self.progress = settings, checkpoint, progress
        self.num_policy_steps = settings.policy_rounds * settings.policy_steps_per_round
        config = ModelConfig(
            num_layers=encoding.grid.num_layers,
            num_levels=encoding.grid.num_levels,
            num_features=encoding.features.shape[1],
            policy_width=settings.policy_width,
            policy_blocks=settings.policy_blocks,
            num_members=settings.num_members,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = PlanModel(config, encoding)
            self.value_training = ValueTraining(
                replace(config, num_members=settings.num_members + NUM_PROBES),
                encoding,
                data,
                held_out(data, settings.num_members, NUM_PROBES, settings.seed),
                seed=settings.seed,
                steps=settings.value_steps,
            )
        self.policy_training = PolicyTraining(
            self.model.policy,
            self.model.values,
            encoding,
            data,
            seed=settings.seed,
            steps=self.num_policy_steps,
        )
        self.best_policy = _copy(self.model.policy.state_dict())
        self.best_policy_error = float("inf")
        self.step = 0
        if checkpoint is not None:
            state = checkpoint.load()
            if state is not None:
                self._restore(state)

    def fit_values(self) -> None:
        """All of `value_steps`, or until nothing got better for `VALUE_PATIENCE_STEPS`; then the best state."""
        training, settings = self.value_training, self.settings
        while self.step < settings.value_steps and self.step < training.best_step + VALUE_PATIENCE_STEPS:
            loss = training.step(self.step, settings.batch_size, settings.value_learning_rate)
            self.step += 1
            if self.step % VALUE_CHECK_EVERY_STEPS == 0 or self.step == settings.value_steps:
                training.keep_if_best(self.step)
            self._after_step("values", loss, training.best_error)
        self.step = max(self.step, settings.value_steps)
        self.model.values.load_state_dict(_first_members(training.best, settings.num_members))
        self.model.values.requires_grad_(False)

    def fit_policy(self) -> None:
        """Rounds: find experts, imitate them. Keeps the state of the last round that does best on held-out experts."""
        training, settings = self.policy_training, self.settings
        while self.step - settings.value_steps < self.num_policy_steps:
            round_index, within = divmod(self.step - settings.value_steps, settings.policy_steps_per_round)
            if len(training.expert_levels) < (round_index + 1) * settings.experts_per_round:
                training.find_experts(round_index, settings.experts_per_round)
                self.best_policy_error = float("inf")
            examples = training.examples()
            while within < settings.policy_steps_per_round:
                loss = training.step(
                    self.step - settings.value_steps, settings.batch_size, settings.policy_learning_rate, examples
                )
                within += 1
                self.step += 1
                if within % POLICY_CHECK_EVERY_STEPS == 0 or within == settings.policy_steps_per_round:
                    self._keep_policy_if_best(training.error())
                self._after_step("policy", loss, self.best_policy_error)
        self.model.policy.load_state_dict(self.best_policy)

    def metrics(self) -> dict[str, float]:
        """Held-out errors and how they were reached."""
        values = self.value_training
        return {
            "value_error_log_kl": values.best_error,
            "value_best_step": float(values.best_step),
            "value_ridge": values.fit.ridge,
            "policy_error_nats": self.best_policy_error,
            "num_experts": float(len(self.policy_training.expert_levels)),
        }

    def _keep_policy_if_best(self, error: float) -> None:
        if error < self.best_policy_error:
            self.best_policy_error = error
            self.best_policy = _copy(self.model.policy.state_dict())

    def _after_step(self, phase: str, loss: float, error: float) -> None:
        if self.checkpoint is not None and self.step % self.settings.checkpoint_every_steps == 0:
            self.checkpoint.save(self._state())
        if self.progress is not None:
            num_steps = self.settings.value_steps + self.num_policy_steps
            self.progress(TrainingProgress(phase, self.step, num_steps, loss, error))

    def _state(self) -> TrainingState:
        values, policy = self.value_training, self.policy_training
        tensors = {
            **{f"values.{name}": t for name, t in values.values.state_dict().items()},
            **{f"best_values.{name}": t for name, t in values.best.items()},
            **optimizer_tensors(values.optimizer, "value_optimizer."),
            **{f"policy.{name}": t for name, t in self.model.policy.state_dict().items()},
            **{f"best_policy.{name}": t for name, t in self.best_policy.items()},
            **optimizer_tensors(policy.optimizer, "policy_optimizer."),
            "expert_levels": policy.expert_levels,
            "expert_budgets": policy.expert_budgets,
        }
        numbers = {
            "best_value_error": values.best_error,
            "best_value_step": float(values.best_step),
            "best_policy_error": min(self.best_policy_error, 1e30),  # JSON has no infinity
        }
        return TrainingState(self.step, tensors, numbers)

    def _restore(self, state: TrainingState) -> None:
        values, policy, tensors = self.value_training, self.policy_training, state.tensors
        values.values.load_state_dict(with_prefix(tensors, "values."))
        values.best = with_prefix(tensors, "best_values.")
        restore_optimizer(values.optimizer, tensors, "value_optimizer.")
        self.model.policy.load_state_dict(with_prefix(tensors, "policy."))
        self.best_policy = with_prefix(tensors, "best_policy.")
        restore_optimizer(policy.optimizer, tensors, "policy_optimizer.")
        policy.expert_levels, policy.expert_budgets = tensors["expert_levels"], tensors["expert_budgets"]
        values.best_error = state.numbers["best_value_error"]
        values.best_step = int(state.numbers["best_value_step"])
        self.best_policy_error = state.numbers["best_policy_error"]
        self.step = state.step


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _first_members(tensors: dict[str, Tensor], num_members: int) -> dict[str, Tensor]:
    """The same without the probes. Every tensor but the posterior draws has the members first."""
    return {name: t if name == "spread" else t[:num_members].clone() for name, t in tensors.items()}
