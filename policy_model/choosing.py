"""How a predictor chooses: candidates from the policy and from what was measured, judged and improved on the values.

Where each layer has one decision, the policy proposes. Where FFNs and attentions go together it does not: plans without
it had 1.005, .955 and 1.07 times the KL on three models, in half of the time (docs/predictor.md, "Where the policy is
not asked"). The additive program's choice then stands in for it, as where there is no policy.

Letters: J limits, N decisions, K options of each.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from policy_model.costs import DecisionCosts
from policy_model.decoder import PolicyDecoder, gumbel_noise
from policy_model.elites import Elites
from policy_model.local_search import Descent, LevelValues, improve
from policy_model.model_features import ModelFeatures
from policy_model.problem_features import ProblemFeatures
from pruning.arrays import FloatArray, IntArray
from pruning.planning.space import Space
from values.encoding import Encoding
from values.values import Values

NUM_CANDIDATES = 9
"""What the policy decodes for one request: the most likely configuration, and eight samples."""

MAX_ROUNDS = 6
"""Exchanges that a candidate is improved by, at most."""

MOST_OPTION_SETS = 4
MOST_PROBLEMS = 16
"""That are kept: a few megabytes each of the former, little of the latter."""


@dataclass(frozen=True)
class Parts:
    """What takes part in a choice; a part is left out to see what it adds.

    Attributes:
        candidates: that the policy decodes: the most likely one first, the others are samples.
            Where it decodes none, the additive program's choice is one.
        ways: the best measured configurations that just fit, and what lies between them and the best that just do not,
            are candidates, too (`Elites.between`): there the values are right where nothing was searched
            (docs/predictor.md, "Far from what was measured"), and where something was, the policy alone loses what the
            search has found.
        walkers: of the best candidates so many are improved by exchanges.
    """

    candidates: int = NUM_CANDIDATES
    ways: bool = True
    walkers: int = 1


EXPLORING = Parts(ways=False)
"""For a search, which wants to hear of something new, and measures it."""


def policy_proposes(space: Space) -> bool:
    """Whether requests hear the policy: each layer has one decision."""
    layers = [{site.layer for site in decision.sites} for decision in space.decisions]
    return len(set[int]().union(*layers)) == len(layers)


def usual_parts(space: Space) -> Parts:
    """What takes part in plans of `space`."""
    return Parts() if policy_proposes(space) else Parts(candidates=0)


class Chooser:
    """Immutable, so threads may share it: equal questions get equal answers.

    Args:
        values: judge configurations.
        encoding: of the model.
        decoder: of the policy; None where there is none.
        seed: of the samples.
        parts: what takes part.
        quick: how doubt is told (`LevelValues`).
    """

    def __init__(
        self,
        values: Values,
        encoding: Encoding,
        decoder: PolicyDecoder | None,
        seed: int,
        parts: Parts,
        *,
        quick: bool = False,
    ) -> None:
        self._values, self._encoding, self._decoder, self.parts = values, encoding, decoder, parts
        self._quick = quick
        N, K = encoding.units.shape
        self._noise = gumbel_noise(N, max(self.parts.candidates, 1), K, seed)
        self._elites = Elites.of(values)
        # Budgets differ from request to request; roundings, devices and workloads are the same again and again.
        self._options = lru_cache(MOST_OPTION_SETS)(self._options_of)
        self._problems = lru_cache(MOST_PROBLEMS)(self._problem_of)

    @property
    def space_values(self) -> LevelValues:
        """The values at the options of the searched space itself."""
        return self.values_at(self._encoding.fractions)

    def values_at(self, fractions: FloatArray) -> LevelValues:
        """The values at options that keep `fractions` [N, K]."""
        return self._options(fractions.tobytes())[0]

    def _options_of(self, fractions: bytes) -> tuple[LevelValues, ModelFeatures]:
        """What does not depend on costs."""
        levels = np.frombuffer(fractions).reshape(self._encoding.units.shape)
        table = LevelValues(self._values, levels, quick=self._quick)
        return table, ModelFeatures.of(self._encoding, table.fractions, table.own)

    def _problem_of(self, fractions: bytes, excess: bytes) -> ProblemFeatures:
        """What does not depend on how much is allowed."""
        costs = np.frombuffer(excess, dtype=np.int64).reshape(-1, *self._encoding.units.shape)
        return ProblemFeatures(self._options(fractions)[1], DecisionCosts(costs))

    def choose(self, costs: DecisionCosts, slack: IntArray, table: LevelValues) -> IntArray:
        """[N] the best option of each decision that is found within `slack` [J]."""
        # As `np.unique` over rows, which takes ten times as long for so few of them.
        candidates = np.array(sorted(set(map(tuple, self._candidates(costs, slack, table).tolist()))), dtype=np.int64)
        scores = table.pessimistic(candidates)
        order = scores.argsort(kind="stable")
        if not self.parts.walkers:
            chosen: IntArray = candidates[order[0]]
            return chosen
        starts = [Descent(candidates[i], float(scores[i])) for i in order[: self.parts.walkers]]
        return improve(table, costs, starts, slack, MAX_ROUNDS).levels

    def next_option(self, costs: DecisionCosts, slack: IntArray, chosen: IntArray) -> FloatArray:
        """[K] the policy's probabilities of the decision after `chosen` [n], of `slack` [J] at the start, among the
        options of the searched space; without a policy, all that are feasible are equal."""
        if self._decoder is not None:
            problem = self._problems(self.space_values.fractions.tobytes(), costs.excess.tobytes())
            return self._decoder.next_option(problem, slack, chosen)
        left = slack - costs.excess[:, np.arange(len(chosen)), chosen].sum(axis=1)
        feasible = costs.feasible(len(chosen), left[None])[0]
        uniform: FloatArray = feasible / feasible.sum()
        return uniform

    def _candidates(self, costs: DecisionCosts, slack: IntArray, table: LevelValues) -> IntArray:
        """[C, N], one at least."""
        problem = self._problems(table.fractions.tobytes(), costs.excess.tobytes())
        if self._decoder is None or not self.parts.candidates:
            decoded = problem.additive_choice(slack)[None]
        else:
            repeated = np.repeat(slack[None], self.parts.candidates, axis=0)
            decoded = self._decoder.decode(problem, repeated, self._noise)
        if self.parts.ways:
            decoded = np.concatenate([decoded, self._elites.between(costs, slack, table.own)])
        # The last of options that cost the same: one configuration is one candidate, whoever proposed it.
        free: IntArray = problem.costs.free[np.arange(decoded.shape[1]), decoded]
        return free
