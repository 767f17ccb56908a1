"""What the policy is told of a problem while it decides: what was asked, what is left, what each option takes of it.

Costs are relative to something of the same limit, so the unit drops out: a limit on bytes, operations or parameters
looks the same to the policy. Several limits are pooled: the tightest one counts, and for some features the loosest as
well. So nothing here has a size that depends on the number of limits, decisions or options.

Each option is also told what the additive program makes of it: the KL of all decisions, if their own KLs added up, once
this option is taken and the decisions after it make the best of what it leaves. Under several limits that is a lower
bound, the highest of those of single limits.

Letters: B batch, J limits, N decisions, K options, as many in each; S states of the additive program.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policy_model.costs import DecisionCosts
from policy_model.model_features import ModelFeatures
from pruning.arrays import BoolArray, FloatArray, IntArray
from values.kl_floor import KL_FLOOR_NATS

Float32Array = NDArray[np.float32]
FloatT = TypeVar("FloatT", Float32Array, FloatArray)

NUM_STEP_FEATURES = 5
"""Numbers of a decision: what was asked and its logarithm, what is left for it and all after it under the tightest
limit and its logarithm, and the same under the loosest limit."""

NUM_TAKEN_FEATURES = 6
"""Numbers of an option at its decision: the share it takes of what is left, the same of the step to the next option,
what it leaves for the decisions after it under the tightest and the loosest limit, and the log KL that it costs by the
additive program: against the best option, and the same at ten times the scale."""

NUM_PRICE_FEATURES = 3
"""Numbers of an option under given limits: its cost relative to the dense one, under the limit where that is most and
where it is least, and the decision's share in all."""

MOST = 2.0
"""More than this, features do not say."""

SLIVER = 1e-3
"""Of a unit: added to what is left, so that nothing left of what costs nothing is plenty."""

LEAST_SHARE = 0.01
"""Less than this, logarithms of shares do not say."""

TOTAL_SCALES = np.array([1.0, 10.0])[:, None, None]
"""Of the last two numbers of an option."""

MAX_STATES = 256
"""Of the additive program under each limit: exact for 32 layers of 8 even levels, a good guess for others."""


@dataclass(frozen=True, eq=False)
class ProblemFeatures:
    """A model under the costs of one request, or of one each for B problems (`ManyCosts`); then arrays that are said to
    be [J, ..] or [N, ..] here have B as their second or first axis."""

    model: ModelFeatures
    costs: DecisionCosts

    @cached_property
    def prices(self) -> FloatArray:
        """[N, K, NUM_PRICE_FEATURES] what does not change while it is decided."""
        excess = self.costs.excess
        dense = excess[..., -1:]
        relative = excess / np.maximum(dense, 1)  # [J, N, K]
        share = excess.shape[-2] * dense / np.maximum(dense.sum(axis=-2, keepdims=True), 1)
        columns = [relative.max(axis=0), relative.min(axis=0), np.broadcast_to(share.max(axis=0), relative.shape[1:])]
        return np.stack(columns, axis=-1)

    @cached_property
    def options(self) -> FloatArray:
        """[N, K, NUM_OPTION_FEATURES + NUM_PRICE_FEATURES] the model's features of options, and their prices."""
        known = self.model.options
        return np.concatenate(
            [np.broadcast_to(known, (*self.prices.shape[:-1], known.shape[-1])), self.prices], axis=-1
        )

    @cached_property
    def _excess(self) -> IntArray:
        """[J, 1 or B, N, K] as the costs', whether or not there is one table for all."""
        return self.costs.excess.reshape(len(self.costs.excess), -1, *self.costs.excess.shape[-2:])

    @cached_property
    def _rests(self) -> IntArray:
        """[N + 1, J, 1 or B] what decisions n.. cost dense."""
        most_from = self.costs.most_from
        return most_from.reshape(len(most_from), -1, most_from.shape[-1]).swapaxes(1, 2)

    @cached_property
    def _per_rest(self) -> FloatArray:
        """[N + 1, J, 1 or B] one over that, or over next to nothing where it is nothing: that limits nothing."""
        return 1.0 / np.where(self._rests > 0, self._rests, SLIVER**2)

    @cached_property
    def _tables(self) -> list["_OptionCosts"]:
        """Of each decision."""
        per_unit, first = self._per_unit[..., None], self._first_states[..., None]
        found = []
        for n in range(self._excess.shape[2]):
            cost, rest, per_rest = (
                self._excess[:, :, n],
                self._rests[n + 1][..., None],
                self._per_rest[n + 1][..., None],
            )
            found.append(
                _OptionCosts(
                    cost_and_step=np.stack([cost, np.diff(cost, axis=2, append=cost[..., -1:])], axis=1) * 1.0,
                    per_left=np.stack([per_rest, -per_unit], axis=1),
                    from_zero=np.stack([-cost * per_rest, (rest + cost) * per_unit], axis=1),
                    first=first,
                    to_go=self._to_go[n + 1].reshape(-1),
                    own=self.model.own[n],
                )
            )
        return found

    @cached_property
    def _per_unit(self) -> FloatArray:
        """[J, 1 or B] states of the additive program per unit of cost."""
        most = self._excess[..., -1].sum(axis=-1)
        divisor = np.gcd.reduce(self._excess, axis=(-2, -1))
        unit = np.where(most <= divisor * MAX_STATES, divisor, most / MAX_STATES)
        per_unit: FloatArray = 1.0 / np.maximum(unit, 1.0)
        return per_unit

    @cached_property
    def _first_states(self) -> IntArray:
        """[J, 1 or B] where the states of each limit begin among those of all."""
        shape = self._per_unit.shape
        return (np.arange(int(np.prod(shape))) * (MAX_STATES + 1)).reshape(shape)

    @cached_property
    def _to_go(self) -> Float32Array:
        """[N + 1, J, 1 or B, S + 1] the least summed own KL of decisions n.. that saves so many units of their dense
        cost.

        What rounding leaves unsaved costs twice what saving everything does on average.
        """
        excess, own = self._excess, self.model.own.astype(np.float32)
        # [J, 1 or B, N, K]
        saved = np.rint((excess[..., -1:] - excess) * self._per_unit[..., None, None]).astype(np.int64)
        units, first = np.arange(MAX_STATES + 1), self._first_states[..., None, None]
        values = np.empty((excess.shape[2] + 1, *excess.shape[:2], MAX_STATES + 1), dtype=np.float32)
        all_units = np.maximum(saved[..., 0].sum(axis=-1), 1)[..., None]
        values[-1] = 2.0 * own[:, 0].sum() * (units / all_units)
        for n in reversed(range(excess.shape[2])):
            after = units - saved[:, :, n, :, None]  # [.., K, S + 1]
            np.maximum(after, 0, out=after)
            after += first
            found = values[n + 1].reshape(-1).take(after)
            found += own[n][:, None]
            np.minimum.reduce(found, axis=-2, out=values[n])
        return values

    def start(self, slack: IntArray) -> "Progress":
        """Nothing is decided, and `slack` [B, J] may be spent."""
        asked = np.minimum(((slack.T + SLIVER) * self._per_rest[0]).min(axis=0), 1.0)
        told = np.stack([asked, np.log(np.maximum(asked, LEAST_SHARE))], axis=1)
        return Progress(self, told, slack, np.full(len(slack), KL_FLOOR_NATS))

    def additive_choice(self, slack: IntArray) -> IntArray:
        """[N] what the additive program chooses one by one, within `slack` [J]; of one table of costs."""
        progress, chosen = self.start(slack[None]), np.empty(len(self.costs.columns), dtype=np.int64)
        for n in range(len(chosen)):
            added = progress.taken_features(n)[4, 0]
            chosen[n] = np.where(self.costs.feasible(n, progress.slack)[0], added, np.inf).argmin()
            progress.take(n, chosen[n : n + 1])
        return chosen

    def trajectory(self, choices: IntArray, slack: IntArray) -> "Trajectory":
        """Features and feasible options along `choices` [B, N], of `slack` [B, J] at the start."""
        progress, steps, taken, masks = self.start(slack), [], [], []
        for n in range(choices.shape[1]):
            steps.append(progress.step_features(n))
            taken.append(progress.taken_features(n))
            masks.append(self.costs.feasible(n, progress.slack))
            progress.take(n, choices[:, n])
        return Trajectory(np.stack(steps, axis=1), np.stack(taken).transpose(2, 0, 3, 1), np.stack(masks, axis=1))


@dataclass(frozen=True, eq=False)
class _OptionCosts:
    """Of the options of one decision: what each costs, and the step up from it, [J, 2, 1 or B, K]. What it leaves of
    what the decisions after it cost dense, and the states that these have to save: `per_left` [J, 2, 1 or B, 1] times
    what is left before it, and what that is added to, `from_zero` [J, 2, 1 or B, K]. The KL of saving as much, the
    states of all limits in a row, and where those of each limit begin, [J, 1 or B, 1]. The own KL of each, [K]."""

    cost_and_step: FloatArray
    per_left: FloatArray
    from_zero: FloatArray
    first: IntArray
    to_go: Float32Array
    own: FloatArray


@dataclass(eq=False)
class Progress:
    """Decisions being made: what was `asked` [B, 2], the `slack` [B, J] that is left, and the own KL of what was chosen
    [B], in nats, over the floor."""

    problem: ProblemFeatures
    asked: FloatArray
    slack: IntArray
    lost: FloatArray

    def __post_init__(self) -> None:
        self._left: FloatArray = np.add(self.slack.T, SLIVER)  # [J, B]

    def step_features(self, n: int) -> Float32Array:
        """[B, NUM_STEP_FEATURES] of decision `n`."""
        reach = self._left * self.problem._per_rest[n]
        features = np.empty((len(self.slack), NUM_STEP_FEATURES), dtype=np.float32)
        features[:, :2] = self.asked
        tight = np.minimum(_least(reach), MOST)
        features[:, 2] = tight
        features[:, 3] = np.log(np.maximum(tight, LEAST_SHARE, out=tight), out=tight)
        features[:, 4] = np.minimum(_most(reach), MOST)
        return features

    def taken_features(self, n: int) -> Float32Array:
        """[NUM_TAKEN_FEATURES, B, K] of the options of decision `n`."""
        table, left = self.problem._tables[n], self._left[:, None, :, None]  # [J, 1, B, 1]
        features = np.empty((NUM_TAKEN_FEATURES, len(self.slack), len(table.own)), dtype=np.float32)
        features[:2] = _most(table.cost_and_step / (left + 1.0))
        after, states = (left * table.per_left + table.from_zero).swapaxes(0, 1)  # [J, B, K]
        features[2], features[3] = _least(after), _most(after)
        np.ceil(states, out=states)
        np.maximum(states, 0.0, out=states)
        np.minimum(states, MAX_STATES, out=states)
        states += table.first
        total = _most(table.to_go.take(states.astype(np.int64))) + table.own
        total += self.lost[:, None]
        np.log(total, out=total)
        total -= np.minimum.reduce(total, axis=1, keepdims=True)
        np.multiply(total, TOTAL_SCALES, out=features[4:])
        np.maximum(features, -MOST, out=features)
        return np.minimum(features, MOST, out=features)

    def take(self, n: int, chosen: IntArray) -> None:
        """Go on with `chosen` [B] in decision `n`."""
        self.slack = self.problem.costs.after(n, self.slack, chosen)
        self._left = np.add(self.slack.T, SLIVER)
        self.lost = self.lost + self.problem.model.own[n].take(chosen)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """`steps` [B, N, NUM_STEP_FEATURES], `taken` [B, N, K, NUM_TAKEN_FEATURES] and `feasible` [B, N, K]."""

    steps: Float32Array
    taken: Float32Array
    feasible: BoolArray


def _most(values: FloatT) -> FloatT:
    """[..] the most of [J, ..]; of one limit there is nothing to compare."""
    most: FloatT = values[0] if len(values) == 1 else np.maximum.reduce(values, axis=0)
    return most


def _least(values: FloatT) -> FloatT:
    """[..] the least of [J, ..]."""
    least: FloatT = values[0] if len(values) == 1 else np.minimum.reduce(values, axis=0)
    return least
