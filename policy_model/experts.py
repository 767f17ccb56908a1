"""Expert iteration: good configurations for budgets nobody searched, found on the values, for the policy to imitate.

As in expert iteration (Anthony et al., arXiv 1705.08439), a slow expert (descent over exchanges of levels on the
values) improves what the fast apprentice (the policy) proposes, and the apprentice imitates the result. Budgets are
parameters half of the time, and else some other cost of the kind that latency is: flat below a width, in stairs, dearer
in some layers.
Letters: R budgets, L decoder layers, K levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy_model.costs import DecisionCosts, parameter_costs
from policy_model.local_search import Descent, LevelValues, improve
from pruning.allocators.additive_dp import CostToGo, cost_to_go
from pruning.arrays import IntArray
from pruning.planning.fit import fit
from values.dataset import TrainingData
from values.encoding import Encoding

NUM_OTHER_COSTS = 6
"""Costs that are not parameters, made up for a training."""

PARAMETER_SHARE = 0.5
"""Of the experts: those for budgets of parameters."""

MAX_ROUNDS = 24
MAX_STATES = 1024
BEYOND = 0.1
"""Retention below the lowest searched one for which experts are made too."""

COST_UNITS = 1_000_000
"""Of an average layer's dense excess in made-up costs."""


def made_up_costs(encoding: Encoding, rng: np.random.Generator) -> DecisionCosts:
    """What latency may look like: flat below some width, then in proportion or in stairs, layers of unequal price."""
    L, K = encoding.widths.shape
    widths = encoding.widths / encoding.dense_widths[:, None]
    flat_below = rng.uniform(0.0, 0.5)
    stairs = rng.choice([0, 2, 3, 4])
    curve = np.maximum(widths - flat_below, 0.0)
    if stairs:
        curve = np.ceil(curve / curve[:, -1:] * stairs - 1e-9) / stairs
    prices = encoding.parameter_shares * L * np.exp(rng.normal(0.0, rng.choice([0.0, 0.3]), size=L))
    costs = (COST_UNITS * prices[:, None] * curve / curve[:, -1:]).astype(np.int64)
    return DecisionCosts((costs - costs[:, :1]).reshape(1, L, K))


@dataclass(frozen=True, eq=False)
class Pricing:
    """One kind of cost, and what the additive program makes of it."""

    costs: DecisionCosts
    solution: CostToGo

    @classmethod
    def of(cls, encoding: Encoding, costs: DecisionCosts) -> "Pricing":
        own = np.exp(encoding.log_sensitivity)
        loss = np.concatenate([own, np.zeros((len(own), 1))], axis=1)
        return cls(costs, cost_to_go(costs, loss, int(costs.most_from[0, 0]), max_states=MAX_STATES))

    def additive_optimum(self, slack: int) -> IntArray:
        """[L] the choice of least summed sensitivity."""
        return self.fit(self.solution.best_choice(slack), slack)

    def fit(self, choice: IntArray, slack: int) -> IntArray:
        """`choice` [L] within `slack`: what raises sensitivity least for its cost goes, and then it is filled up."""
        return fit(self.costs, np.array([slack], dtype=np.int64), choice, -self.solution.loss)


def pricings(encoding: Encoding, seed: int) -> list[Pricing]:
    """FFN parameters first, then `NUM_OTHER_COSTS` others."""
    rng = np.random.default_rng([seed, 1])
    others = [made_up_costs(encoding, rng) for _ in range(NUM_OTHER_COSTS)]
    return [Pricing.of(encoding, costs) for costs in (parameter_costs(encoding), *others)]


def random_slacks(
    encoding: Encoding, data: TrainingData, pricing: Pricing, count: int, seed: Sequence[int]
) -> IntArray:
    """[R] ascending, uniform from a little below the searched retentions up to nearly dense."""
    rng = np.random.default_rng(seed)
    total, lowest = encoding.most_parameters, encoding.least_parameters
    low = max((float(data.retention[data.searched].min()) - BEYOND) * total - lowest, 0.0) / (total - lowest)
    # Stratified: one budget per equal slice, so that no range is left out by chance.
    slices = (np.arange(count) + rng.random(count)) / count
    slacks: IntArray = ((low + (0.995 - low) * slices) * int(pricing.costs.most_from[0, 0])).astype(np.int64)
    return slacks


def starting_points(data: TrainingData, pricing: Pricing, slack: int) -> list[IntArray]:
    """Choices [L]: two best samples near `slack`, fitted to it, and the additive optimum."""
    levels = np.maximum(data.levels, 0)
    distance = (pricing.costs.spent(levels)[:, 0] - slack) / max(int(pricing.costs.most_from[0, 0]), 1) / 0.05
    score = distance**2 + data.gap + 1e6 * ~data.on_grid
    near = np.argsort(score, kind="stable")[:2]
    return [*(pricing.fit(levels[n], slack) for n in near), pricing.additive_optimum(slack)]


def find_expert(table: LevelValues, pricing: Pricing, starts: Sequence[IntArray], slack: int) -> IntArray:
    """The best levels [L] that descent reaches from `starts`."""
    levels = np.unique(np.array(starts, dtype=np.int64), axis=0)
    scores = table.pessimistic(levels)
    room = np.array([slack], dtype=np.int64)
    ends = [
        improve(table, pricing.costs, [Descent(start, float(score))], room, MAX_ROUNDS)
        for start, score in zip(levels, scores, strict=True)
    ]
    return min(ends, key=lambda end: end.score).levels
