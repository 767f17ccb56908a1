"""Training a predictor from stored samples: first the values, then the policy against them.

The stages, visible in `train_predictor`:
1. The values are fitted to all samples, in closed form.
2. `fit_policy`, where plans hear the policy or it leads searches: rounds of expert iteration. A teacher solves random
   problems on the values, starting from the samples, the additive optimum and the policy's own proposals; the policy
   imitates its answers. Of all weights on the way those are kept whose proposals for held-out problems are best; when
   these get no better, training ends.
3. Residuals of samples that are left out of the values become the intervals of every later prediction.

Every step is a function of the state, the step's number and the seed, so a training that was interrupted and goes on
from its checkpoint ends with the same weights as one that was not.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from policy_model.checkpoint import (
    TrainingCheckpoint,
    TrainingState,
    optimizer_tensors,
    restore_optimizer,
    with_prefix,
)
from policy_model.choosing import policy_proposes
from policy_model.policy import Policy
from policy_model.policy_config import PolicyConfig
from policy_model.policy_training import PolicyTraining
from policy_model.predictor import Predictor, PredictorInfo
from policy_model.progress import ProgressCallback, TrainingProgress
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.measuring.statistics import ModelStatistics
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO
from pruning.planning.space import Space
from storage.records import Sample
from values.calibration import Calibration
from values.cross_validation import CrossValidation
from values.dataset import TrainingData, check_samples, samples_sha256, training_data
from values.decisions import check_learnt, check_space
from values.encoding import Encoding, encode
from values.judged_samples import JudgedSamples
from values.residual_scale import ResidualScale
from values.shares import ShareIntervals
from values.typical_kl import TypicalKl, scored_alike
from values.unseen import Unseen
from values.value_training import ValueFit, fit_values
from values.values import Values

LOOKS_PER_ROUND = 4
"""At the held-out problems."""

PATIENCE = 4
"""Looks without better proposals after which training ends: small models leave little to learn."""

PROBLEMS_PER_OPTION = 40
"""Of a round, at most: likewise."""

MAX_EPOCHS = 20
"""Times that a problem of the first round is imitated in it, at most: likewise."""


@dataclass(frozen=True)
class TrainingSettings:
    """What a training is a function of, beside the model and the samples.

    A round has `problems_per_round` and `policy_steps_per_round`, or fewer in a small space (`PROBLEMS_PER_OPTION`,
    `MAX_EPOCHS`). The space (`axes`, `num_levels`, `round_to`) should be that of the search: answers begin at its
    choices. `policy`: whether one is trained; None: where requests hear it (`choosing.policy_proposes`).
    """

    num_levels: int = DEFAULT_NUM_LEVELS
    round_to: int = DEFAULT_ROUND_TO
    axes: SpaceName = SpaceName.FFN
    seed: int = 0
    policy_rounds: int = 3
    policy_steps_per_round: int = 600
    policy_learning_rate: float = 2e-3
    problems_per_round: int = 4096
    batch_size: int = 128
    policy_width: int = 64
    policy_blocks: int = 2
    checkpoint_every_steps: int = 50
    policy: bool | None = None

    def space(self, anatomy: ModelAnatomy) -> Space:
        """What is decided. Raises InputError if a layer is too narrow for it."""
        return coarse_space(anatomy, self.axes, num_levels=self.num_levels, round_to=self.round_to)

    def __post_init__(self) -> None:
        check_learnt(self.axes)
        counts = ("policy_rounds", "policy_steps_per_round", "problems_per_round", "batch_size")
        for name in (*counts, "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", values=str(getattr(self, name)))


def train_predictor(
    anatomy: ModelAnatomy,
    samples: Sequence[Sample],
    settings: TrainingSettings,
    *,
    statistics: ModelStatistics | None = None,
    cross_validated: Sequence[CrossValidation] = (),
    progress: ProgressCallback | None = None,
    checkpoint_folder: Path | None = None,
) -> Predictor:
    """A predictor for `anatomy`. Equal arguments give equal weights, in whatever order the samples come.

    `statistics` of activations, if they were measured, tell the layers apart further. From the `cross_validated`
    targets, searched on the conversations of the samples, it learns what to expect of unseen ones. With a
    `checkpoint_folder`, an interrupted training of the same arguments goes on from there.

    Raises:
        InputError: too few samples, most of them of other widths, or a layer too narrow for so many levels.
        CheckpointError: the folder holds another training, or cannot be used.
    """
    space = settings.space(anatomy)
    check_space(space)
    samples = scored_alike(check_samples(space, samples))
    encoding = encode(anatomy, space, samples, statistics)
    data = training_data(encoding, samples)
    if 2 * (on_grid := int(data.on_grid.sum())) < data.num_samples:
        raise InputError(
            "a predictor is trained on the options that were searched",
            values=f"{on_grid} of {data.num_samples} are of {settings.num_levels} levels of {settings.round_to}",
            remedy="Give --num-levels and --round-to as in the search",
        )
    info = PredictorInfo(
        fingerprint=anatomy.fingerprint,
        num_samples=len(samples),
        samples_sha256=samples_sha256(space, samples),
        calibration_id=samples[0].calibration_id,
        ranking_sha256=samples[0].ranking_sha256,
        seed=settings.seed,
        searched=data.searched_range,
    )
    checkpoint = None
    if checkpoint_folder is not None:
        key = json.dumps([asdict(settings), encoding.to_dict(), info.calibration_id, info.ranking_sha256])
        run_key = hashlib.sha256((key + info.samples_sha256).encode()).hexdigest()
        checkpoint = TrainingCheckpoint(checkpoint_folder, run_key)
    fit = fit_values(encoding, data)
    policy, of_policy = None, dict[str, float]()
    if policy_proposes(space) if settings.policy is None else settings.policy:
        run = _Run(settings, encoding, data, fit.values, checkpoint, progress)
        run.fit_policy()
        policy, of_policy = (
            {name: p.detach().numpy().copy() for name, p in run.policy.state_dict().items()},
            run.metrics(),
        )
    calibration = calibrate(data, fit)
    metrics = {"value_error_log_kl": fit.error, **share_errors(data, fit, calibration), **of_policy}
    return Predictor(
        policy,
        PolicyConfig(settings.policy_width, settings.policy_blocks),
        fit.values,
        encoding,
        calibration,
        residual_scale(data, fit),
        replace(info, metrics=metrics),
        Unseen.of(cross_validated, TypicalKl.of([sample.metrics for sample in samples])),
    )


def calibrate(data: TrainingData, fit: ValueFit) -> Calibration:
    """Intervals from the anchors that prune two layers or more: what prunes fewer is known."""
    index, judged = _judged(data, fit)
    accuracy = data.accuracy[index] if data.exact_match_tells else None
    return Calibration.measure(judged, accuracy, data.agreement[index])


def share_errors(data: TrainingData, fit: ValueFit, calibration: Calibration) -> dict[str, float]:
    """Mean absolute errors of exact match and agreement on the anchors, each judged without itself.

    Nothing where agreement is not predicted: predictors of samples from before it was measured stay as they were.
    """
    if calibration.agreement is None:
        return {}
    index, judged = _judged(data, fit)
    errors = {"agreement_error": _mean_error(data.agreement[index], calibration.agreement, judged)}
    if calibration.accuracy is not None:
        errors["accuracy_error"] = _mean_error(data.accuracy[index], calibration.accuracy, judged)
    return errors


def _mean_error(share: FloatArray, shares: ShareIntervals, judged: JudgedSamples) -> float:
    return float(np.nanmean(np.abs(share - shares.curve(judged.predicted_alone))))


def _judged(data: TrainingData, fit: ValueFit) -> tuple[IntArray, JudgedSamples]:
    """The anchors that prune two layers or more: which samples they are [R], and how they are judged."""
    searched = np.flatnonzero(data.searched[fit.anchors])
    index = fit.anchors[searched]
    measured = data.measured_log_kl[index]
    beside = measured - data.log_kl[index]  # what the samples' own KL is above what is typical of their scores
    judged = JudgedSamples(
        measured,
        fit.alone.at(searched).shifted(beside),
        fit.grouped.at(searched).shifted(beside),
        fit.groups[searched],
        fit.weights[searched],
    )
    return index, judged


def residual_scale(data: TrainingData, fit: ValueFit) -> ResidualScale:
    """From the anchors that prune two layers or more, each predicted without its target."""
    searched = np.flatnonzero(data.searched[fit.anchors])
    retention = data.retention[fit.anchors[searched]]
    return ResidualScale.measure(retention, fit.grouped.at(searched).scores, fit.weights[searched])


class _Run:
    """The training of one policy: its state, how it is saved, and its loop."""

    def __init__(
        self,
        settings: TrainingSettings,
        encoding: Encoding,
        data: TrainingData,
        values: Values,
        checkpoint: TrainingCheckpoint | None,
        progress: ProgressCallback | None,
    ) -> None:
        self.settings, self.checkpoint, self.progress = settings, checkpoint, progress
        num_problems = min(settings.problems_per_round, PROBLEMS_PER_OPTION * encoding.units.size)
        epochs = MAX_EPOCHS * num_problems // settings.batch_size
        self.steps_per_round = max(min(settings.policy_steps_per_round, epochs), 1)
        self.num_steps = settings.policy_rounds * self.steps_per_round
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.policy = Policy(PolicyConfig(settings.policy_width, settings.policy_blocks))
        self.training = PolicyTraining(
            self.policy,
            values,
            encoding,
            data,
            seed=settings.seed,
            steps=self.num_steps,
            problems_per_round=num_problems,
        )
        self.best = _copy(self.policy.state_dict())
        self.best_excess = float("inf")
        self.looks_since_best = self.step = 0
        self.loss = float("nan")
        if checkpoint is not None:
            state = checkpoint.load()
            if state is not None:
                self._restore(state)

    def fit_policy(self) -> None:
        """Rounds: solve problems, imitate the answers. Ends with the policy that does best on held-out problems."""
        training, settings = self.training, self.settings
        look_every = -(-self.steps_per_round // LOOKS_PER_ROUND)
        while self.step < self.num_steps:
            training.start_round(self.step // self.steps_per_round)
            self.loss = training.step(self.step, settings.batch_size, settings.policy_learning_rate)
            self.step += 1
            if self.step % look_every == 0 or self.step == self.num_steps:
                self._look(training.excess())
            self._after_step()
        self.policy.load_state_dict(self.best)

    def _look(self, excess: float) -> None:
        """Keep the weights if they propose better than any before; end if none has for long."""
        if excess < self.best_excess:
            self.best_excess, self.best, self.looks_since_best = excess, _copy(self.policy.state_dict()), 0
            return
        self.looks_since_best += 1
        if self.looks_since_best == PATIENCE:
            self.num_steps = self.step

    def metrics(self) -> dict[str, float]:
        """How the policy does on held-out problems, and how many it imitated."""
        return {
            "policy_error_nats": self.training.error(),
            "policy_excess_log_kl": self.best_excess,
            "num_problems": float(sum(map(len, self.training.answers))),
        }

    def _after_step(self) -> None:
        if self.checkpoint is not None and self.step % self.settings.checkpoint_every_steps == 0:
            self.checkpoint.save(self._state())
        self._report()

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(TrainingProgress("policy", self.step, self.num_steps, self.loss, self.best_excess))

    def _state(self) -> TrainingState:
        training = self.training
        tensors = {
            **{f"policy.{name}": t for name, t in self.policy.state_dict().items()},
            **{f"best_policy.{name}": t for name, t in self.best.items()},
            **optimizer_tensors(training.optimizer, "policy_optimizer."),
            **{f"answers.{index}": torch.from_numpy(found) for index, found in enumerate(training.answers)},
        }
        numbers = {
            "best_excess": min(self.best_excess, 1e30),  # JSON has no infinity
            "looks_since_best": float(self.looks_since_best),
            "num_steps": float(self.num_steps),
        }
        return TrainingState(self.step, tensors, numbers)

    def _restore(self, state: TrainingState) -> None:
        training, tensors = self.training, state.tensors
        self.policy.load_state_dict(with_prefix(tensors, "policy."))
        self.best = with_prefix(tensors, "best_policy.")
        restore_optimizer(training.optimizer, tensors, "policy_optimizer.")
        answers = with_prefix(tensors, "answers.")
        training.answers = [answers[str(index)].numpy().copy() for index in range(len(answers))]
        self.best_excess, self.step = state.numbers["best_excess"], state.step
        self.looks_since_best = int(state.numbers["looks_since_best"])
        self.num_steps = int(state.numbers["num_steps"])


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
