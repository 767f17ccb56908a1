"""Training the policy: imitate the teacher's answers to random problems, round after round.

As in expert iteration (Anthony et al., arXiv 1705.08439): a slow expert (the teacher's descent on the values) improves
what the fast apprentice (the policy) proposes, and the apprentice imitates the result.
Letters: P problems, B batch, J limits, N decisions, K options.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policy_model.decoder import PolicyDecoder, gumbel_noise
from policy_model.elites import Elites
from policy_model.local_search import LevelValues
from policy_model.model_features import ModelFeatures, decision_features
from policy_model.policy import Policy, policy_loss
from policy_model.problem_features import ProblemFeatures
from policy_model.problems import OptionSet, Problems, random_problems
from policy_model.schedule import scheduled
from policy_model.teacher import Teacher
from pruning.arrays import FloatArray, IntArray
from values.dataset import TrainingData
from values.encoding import Encoding
from values.values import Values

NUM_GROUPS = 32
"""Of the problems of a round: every second one is over the options of the searched space, every other over options of
its own."""

MOST_HELD_OUT, HELD_OUT_SHARE = 256, 0.25
"""Problems that are not imitated: they tell which weights were the best, and how good those are."""

PROPOSALS = 5
"""Configurations that the policy proposes for every problem of a round: the best one is where a descent starts."""

CANDIDATES = 9
"""Configurations that the policy alone may try on a held-out problem: the most likely one, and eight samples."""

CHUNK = 64
"""Problems whose features are worked out together."""

ASKED_SHARE = 0.5
"""Part of the problems that are imitated with the budget that was asked. What is best of a budget also is of a smaller
one that it fits: the others' limits are drawn between the two, and look tighter than they were."""


@dataclass(frozen=True, eq=False)
class Group:
    """Problems over the same options: what the policy is told of these, and the teacher that knows their values."""

    problems: Problems
    model: ModelFeatures
    teacher: Teacher

    def starts(self) -> list[IntArray]:
        """What the teacher begins with, without a policy: choices [P, N] each."""
        return [self.teacher.measured(self.problems), self.teacher.additive(self.problems)]


@dataclass(frozen=True, eq=False)
class Examples:
    """Features of P problems along good `choices` [P, N], as `Policy.forward` takes them."""

    options: Tensor
    steps: Tensor
    taken: Tensor
    feasible: Tensor
    choices: Tensor

    def __len__(self) -> int:
        return len(self.choices)


class PolicyTraining:
    """State: the policy, its optimizer, and the teacher's answers so far. A step depends on it, `step` and the seed.

    Args:
        policy: to be trained.
        values, encoding, data: what problems are made for, and answered by.
        seed: of the problems and of the order in which they are imitated.
        steps: of the whole training, for the learning rate.
        problems_per_round: P of every round.
    """

    def __init__(
        self,
        policy: Policy,
        values: Values,
        encoding: Encoding,
        data: TrainingData,
        *,
        seed: int,
        steps: int,
        problems_per_round: int,
    ) -> None:
        self.policy, self.encoding, self.data = policy, encoding, data
        self.seed, self.steps, self.problems_per_round = seed, steps, problems_per_round
        self._values, self._elites = values, Elites.of(values)
        self._decision_features = decision_features(encoding)
        self._decisions = torch.from_numpy(self._decision_features).float()
        self.answers: list[IntArray] = []
        held_out = min(MOST_HELD_OUT, max(int(HELD_OUT_SHARE * problems_per_round), NUM_GROUPS))
        self._held_out = self._groups(held_out, [seed, 1])
        solved = [group.teacher.solve(group.problems, group.starts()) for group in self._held_out]
        self._held_out_log_kl = np.concatenate([log_kl for _, log_kl in solved])
        self._held_out_examples = _joined(
            [
                _examples(group, choices, group.problems.slack)
                for group, (choices, _) in zip(self._held_out, solved, strict=True)
            ]
        )
        self._imitated: list[Examples] = []
        decayed = [p for p in policy.parameters() if p.ndim == 2]
        other = [p for p in policy.parameters() if p.ndim != 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}], lr=0.0
        )

    def _groups(self, count: int, seed: list[int]) -> list[Group]:
        """`count` problems: a function of the seed."""
        groups = []
        for number, rows in enumerate(np.array_split(np.arange(count), min(NUM_GROUPS, count))):
            rng = np.random.default_rng([*seed, number])
            options = OptionSet.random(self.encoding, rng) if number % 2 else OptionSet.usual(self.encoding)
            table = LevelValues(self._values, options.fractions, quick=True)
            groups.append(
                Group(
                    random_problems(self.encoding, self.data, options, len(rows), rng),
                    ModelFeatures.of(self.encoding, table.fractions, table.own),
                    Teacher(table, self._elites),
                )
            )
        return groups

    def start_round(self, round_index: int) -> None:
        """Add the teacher's answers to the problems of that round, unless they are known, and imitate all so far."""
        if len(self._imitated) > round_index:
            return
        for index in range(len(self._imitated), round_index + 1):
            groups = self._groups(self.problems_per_round, [self.seed, 2, index])
            if len(self.answers) == index:
                self.answers.append(np.concatenate([self._answers(group, index) for group in groups]))
            ends = np.cumsum([len(group.problems) for group in groups])[:-1]
            rng = np.random.default_rng([self.seed, 3, index])
            found = []
            for group, answers in zip(groups, np.split(self.answers[index], ends), strict=True):
                spent = group.problems.costs.spent(answers)
                drawn = np.where(rng.random((len(answers), 1)) < ASKED_SHARE, 1.0, rng.random(spent.shape))
                slack = spent + (drawn * (group.problems.slack - spent)).astype(np.int64)
                found.append(_examples(group, answers, slack))
            self._imitated.append(_joined(found))
        self._all_imitated = _joined(self._imitated)

    def _answers(self, group: Group, round_index: int) -> IntArray:
        starts = group.starts()
        if round_index:
            starts.append(self._proposals(group, PROPOSALS, [self.seed, 4, round_index])[0])
        return group.teacher.solve(group.problems, starts)[0]

    def step(self, step: int, batch_size: int, learning_rate: float) -> float:
        """One update; returns the negative log-likelihood per decision in nats."""
        examples = self._all_imitated
        index = torch.from_numpy(np.random.default_rng([self.seed, 5, step]).integers(len(examples), size=batch_size))
        loss = self._loss(examples, index)
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled(learning_rate, step, self.steps)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def error(self) -> float:
        """Negative log-likelihood per decision, in nats, of the teacher's answers to the held-out problems."""
        with torch.no_grad():
            return self._loss(self._held_out_examples, torch.arange(len(self._held_out_examples))).item()

    def excess(self) -> float:
        """Mean log KL of the best that the policy alone proposes for the held-out problems, above the teacher's."""
        found = [self._proposals(group, CANDIDATES, [self.seed, 6])[1] for group in self._held_out]
        return float(np.mean(np.concatenate(found) - self._held_out_log_kl))

    def _proposals(self, group: Group, count: int, seed: list[int]) -> tuple[IntArray, FloatArray]:
        """[P, N] the best of `count` configurations that the policy decodes for each problem; its log KL [P]."""
        weights = {name: p.detach().numpy() for name, p in self.policy.state_dict().items()}
        decoder = PolicyDecoder(weights, self.policy.config, self._decision_features)
        N, K = group.model.own.shape
        best, least = [], []
        for number, rows in enumerate(_chunks(len(group.problems))):
            repeated = group.problems.of(np.tile(rows, count))
            noise = gumbel_noise(N, len(repeated), K, [*seed, number])
            noise[:, : len(rows)] = 0.0  # the first of each problem is the most likely one
            choices = decoder.decode(ProblemFeatures(group.model, repeated.costs), repeated.slack, noise)
            choices = np.take_along_axis(repeated.costs.free, choices[:, :, None], axis=2)[:, :, 0]
            log_kl = group.teacher.judge(choices).reshape(count, len(rows))
            chosen = log_kl.argmin(axis=0)
            best.append(choices.reshape(count, len(rows), N)[chosen, np.arange(len(rows))])
            least.append(log_kl[chosen, np.arange(len(rows))])
        return np.concatenate(best), np.concatenate(least)

    def _loss(self, examples: Examples, index: Tensor) -> Tensor:
        columns = (getattr(examples, name)[index] for name in COLUMNS)
        options, steps, taken, feasible, choices = columns
        return policy_loss(self.policy(self._decisions, options, steps, taken, feasible, choices), choices)


COLUMNS = ("options", "steps", "taken", "feasible", "choices")
"""Of `Examples`."""


def _examples(group: Group, answers: IntArray, slack: IntArray) -> Examples:
    """Of problems along their `answers` [P, N], as if `slack` [P, J] had been asked."""
    found = []
    for rows in _chunks(len(answers)):
        features = ProblemFeatures(group.model, group.problems.costs.of(rows))
        trajectory = features.trajectory(answers[rows], slack[rows])
        # What the teacher left over is no mistake of its own.
        np.put_along_axis(trajectory.feasible, answers[rows][:, :, None], True, axis=2)
        options = features.options.astype(np.float32)
        arrays = (options, trajectory.steps, trajectory.taken, trajectory.feasible, answers[rows])
        found.append(Examples(*map(torch.from_numpy, arrays)))
    return _joined(found)


def _joined(examples: list[Examples]) -> Examples:
    return Examples(*(torch.cat([getattr(x, name) for x in examples]) for name in COLUMNS))


def _chunks(count: int) -> list[IntArray]:
    return np.array_split(np.arange(count), max(1, -(-count // CHUNK)))
