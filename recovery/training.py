"""The training loop: gradients of several batches, one step, now and then a look at the selection part.

A function of the start, the data, the recipe and the number of steps: nothing is drawn but the order of batches, by the
seed. On one machine with as many threads equal runs give equal weights, killed ones included.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from pruning.data.batches import Batch
from recovery.judging import Judge
from recovery.losses import weighted_loss
from recovery.passes import Passes
from recovery.processes import ALONE, Processes
from recovery.recipe import Recipe
from recovery.schedule import Schedule, batches_per_step
from recovery.scores import AnswerScores
from recovery.state import Progress, StateFolder
from recovery.teacher import Teacher
from recovery.trained import Trained

STATE_SECONDS = 120.0
"""After so many the next step ends with a state. A killed process loses them, and that step with its evaluation."""

_TRIAL_STEPS = 4
"""By which minutes become a number of steps; the first is not counted."""

_WEIGHTS = "weights"
_MOMENTS = {"step": "step", "exp_avg": "mean", "exp_avg_sq": "square"}
"""What AdamW keeps of a parameter, and what that is called in the state's file, before the parameter's name."""
_KEPT = {name: own for own, name in _MOMENTS.items()}

_CLIP = 1.0
"""The largest norm of a step's gradient."""


@dataclass(frozen=True)
class Watcher:
    """Who is told what. `on_step(done, total, loss, tokens a second)`; `on_scores(step, scores, is_best)`."""

    on_step: Callable[[int, int, float, float], None] = lambda *_: None
    on_scores: Callable[[int, AnswerScores, bool], None] = lambda *_: None


@dataclass(frozen=True)
class TrainingBatches:
    """What a process trains on.

    Attributes:
        own: this process's rows of the batches, of those in which it has any.
        numbers: of each of these, which batch of the training it is part of, from 0.
        count: batches of the training.
    """

    own: Sequence[Batch]
    numbers: Sequence[int]
    count: int


class Training:
    """One training of `trained`, whose start is `start` on the selection part.

    Args:
        passes: of the student over this process's `batches`.
        selection: passes of the student over what `judge` judges on.
        dtype: of the files that are written in the end: what is scored is rounded to it.
        folder: where the state is kept.
        on_note: told if another number of processes began what is gone on with, or that cannot be read.
        processes: those that train together.
    """

    def __init__(
        self,
        trained: Trained,
        batches: TrainingBatches,
        passes: Passes,
        teacher: Teacher,
        recipe: Recipe,
        *,
        judge: Judge,
        selection: Passes,
        start: AnswerScores,
        dtype: torch.dtype,
        folder: StateFolder,
        watcher: Watcher | None = None,
        on_note: Callable[[str], None] = lambda _text: None,
        processes: Processes = ALONE,
    ) -> None:
        self._trained, self._passes, self._teacher, self._recipe = trained, passes, teacher, recipe
        self._judge, self._selection, self._start, self._dtype = judge, selection, start, dtype
        self._folder, self._watcher = folder, watcher or Watcher()
        self._on_note, self._processes = on_note, processes
        self._wanted = list(trained.parameters.values())
        self._best_kl = start.mean_kl
        self._own = {number: index for index, number in enumerate(batches.numbers)}
        tokens = np.zeros((2, batches.count))
        for number, places in zip(batches.numbers, passes.places, strict=True):
            tokens[:, number] = len(places.targets), len(places.real)
        # Of whole batches: what a step's loss is divided by.
        self._tokens, self._real = processes.summed(tokens).astype(int).tolist()
        self._optimiser = self._new_optimiser()

    def run(self) -> Progress:
        """Train to the end, from where an earlier run was killed; the best weights are in the folder."""
        progress = self._resumed() or self._begun()
        schedule = self._schedule(progress.num_steps)
        every = max(1, math.ceil(progress.num_steps / self._recipe.evaluations))
        saved = time.monotonic()
        while progress.step < progress.num_steps and not progress.is_over:
            started = time.perf_counter()
            loss = self._take_step(schedule, progress.step)
            if loss is None:
                progress.stopped = f"the loss was not a finite number at step {progress.step + 1}"
                break
            numbers = schedule.batches(progress.step)
            progress.curve.append((progress.step + 1, loss, schedule.rate(progress.step)))
            progress.step += 1
            progress.tokens += sum(self._real[i] for i in numbers)
            progress.seconds += time.perf_counter() - started
            speed = progress.tokens / max(progress.seconds, 1e-9)
            self._watcher.on_step(progress.step, progress.num_steps, loss, speed)
            if progress.step % every == 0 or progress.step == progress.num_steps:
                self._evaluate(progress)
            if time.monotonic() - saved >= STATE_SECONDS:
                self._save(progress)
                saved = time.monotonic()
        progress.is_over = True
        self._save(progress)
        return progress

    def _take_step(self, schedule: Schedule, step: int) -> float | None:
        """The step's loss; None, and weights as they were, if it or its gradient is not finite."""
        numbers = schedule.batches(step)
        answers, real = sum(self._tokens[i] for i in numbers), sum(self._real[i] for i in numbers)
        self._optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for index in (self._own[number] for number in numbers if number in self._own):
            places = self._passes.places[index]
            states = self._teacher.states(index) if self._recipe.needs_teacher else {}
            last, after = self._passes(index)
            loss = weighted_loss(
                self._recipe.losses,
                logits=self._passes.logits(last[places.answers]),
                targets=places.targets,
                teacher_logits=self._teacher.logits(states),
                hidden=self._teacher.compared(states, last, after, places),
                temperature=self._recipe.temperature,
                num_answer_tokens=answers,
                num_hidden_tokens=real,
            )
            total += float(loss.detach())
            if not math.isfinite(total):
                break
            # Without a picture nothing follows from the projector: such a batch counts in the loss, and moves nothing.
            if loss.requires_grad:
                torch.autograd.backward(loss)
        total = float(self._processes.summed(np.array([total]))[0])
        if not math.isfinite(total):
            return None
        self._processes.sum_gradients(self._wanted)
        norm = torch.nn.utils.clip_grad_norm_(self._wanted, _CLIP)
        if not bool(torch.isfinite(norm)):
            return None
        for group in self._optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        self._optimiser.step()
        return total

    def _evaluate(self, progress: Progress) -> None:
        with self._trained.as_written(self._dtype):
            scores = self._judge.scores(self._selection)
        is_best = scores.mean_kl < self._best_kl and scores.accuracy >= self._start.accuracy
        # Not counted from the start: at the full rate a training may be worse than that, and better as the rate falls.
        lowest = min((x["kl"] for x in progress.evaluations), default=math.inf)
        progress.without_better = 0 if scores.mean_kl < lowest else progress.without_better + 1
        progress.evaluations.append({"step": progress.step, **scores.document()})
        if is_best:
            self._best_kl, progress.best_step = scores.mean_kl, progress.step
            if self._processes.is_main:
                self._folder.save_best(progress.step, self._trained.parameters)
        self._watcher.on_scores(progress.step, scores, is_best)
        if not all(math.isfinite(value) for value in scores.document().values()):
            progress.stopped, progress.is_over = f"scores were not finite numbers after step {progress.step}", True
        elif progress.without_better >= self._recipe.patience and progress.step < progress.num_steps:
            progress.stopped = f"{progress.without_better} evaluations in a row no better than one before"
            progress.is_over = True

    def _begun(self) -> Progress:
        per_step = batches_per_step(sum(self._tokens), len(self._tokens), self._recipe.step_tokens)
        steps = self._recipe.steps_for(len(self._tokens) / per_step)
        if self._recipe.minutes is not None:
            seconds = self._seconds_per_step()  # which all processes have to measure, and no two find alike
            steps = min(steps, self._recipe.minutes * 60 / self._processes.of_main(lambda: seconds))
        progress = Progress(max(1, math.ceil(steps)), num_processes=self._processes.count)
        self._save(progress)
        return progress

    def _seconds_per_step(self) -> float:
        """From steps that are then forgotten: what is trained for how long must not depend on them otherwise."""
        before = {name: parameter.detach().cpu().clone() for name, parameter in self._trained.parameters.items()}
        schedule = self._schedule(_TRIAL_STEPS)
        started = 0.0
        for step in range(_TRIAL_STEPS):
            if step == 1:
                started = time.perf_counter()
            self._take_step(schedule, step)
        seconds = (time.perf_counter() - started) / (_TRIAL_STEPS - 1)
        self._trained.put(before.items())
        self._optimiser = self._new_optimiser()
        return seconds

    def _resumed(self) -> Progress | None:
        found = self._folder.load(self._on_note) if self._processes.is_main else None
        document = self._processes.of_main(lambda: None if found is None else asdict(found[0]))
        if document is None:
            return None
        progress = Progress.of(document)
        for key, tensor in self._processes.tensors_of_main({} if found is None else found[1]):
            kind, _, name = key.partition(".")
            if kind == _WEIGHTS:
                self._trained.put([(name, tensor)])
                continue
            parameter = self._trained.parameters[name]
            # AdamW keeps its count of steps on the CPU.
            where = torch.device("cpu") if kind == _MOMENTS["step"] else parameter.device
            # A copy, as the file's would keep its room on the disk while the next ones are written.
            self._optimiser.state[parameter][_KEPT[kind]] = tensor.to(where, copy=True)
        kept = next((x["kl"] for x in progress.evaluations if x["step"] == progress.best_step), None)
        self._best_kl = self._start.mean_kl if kept is None else kept
        if self._processes.is_main and progress.num_processes != self._processes.count:
            self._on_note(
                f"begun by {progress.num_processes} processes and gone on with by {self._processes.count}: what it "
                "ends with is the same but for rounding, not bit for bit"
            )
        return progress

    def _save(self, progress: Progress) -> None:
        if not self._processes.is_main:
            return
        tensors: dict[str, torch.Tensor] = {f"{_WEIGHTS}.{n}": p for n, p in self._trained.parameters.items()}
        for name, parameter in self._trained.parameters.items():
            # None of a parameter that no batch has needed yet: the projector's, where the texts come without pictures.
            for own, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"{_MOMENTS[own]}.{name}"] = value
        self._folder.save(progress, tensors)

    def _schedule(self, num_steps: int) -> Schedule:
        per_step = batches_per_step(sum(self._tokens), len(self._tokens), self._recipe.step_tokens)
        recipe = self._recipe
        assert recipe.learning_rate is not None
        return Schedule(len(self._tokens), per_step, num_steps, recipe.warmup, recipe.learning_rate, recipe.seed)

    def _new_optimiser(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self._wanted, lr=0.0, betas=(0.9, 0.999), weight_decay=0.0)
