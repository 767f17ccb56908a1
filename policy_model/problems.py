"""Random problems for the policy to learn from: budgets that nobody searched, of costs of every kind.

Budgets are of parameters (bytes and operations look the same), of made-up costs of the kind that latency is (flat below
a width, in stairs, dearer in some layers), and of up to three limits at once.
Letters: P problems, J limits, N decisions, K options.
"""

from dataclasses import dataclass

import numpy as np

from policy_model.costs import ManyCosts
from pruning.anatomy.architecture import Sublayer
from pruning.arrays import FloatArray, IntArray
from values.dataset import TrainingData
from values.decisions import kind_of
from values.encoding import Encoding

KINDS = ((True, 0), (True, 0), (False, 1), (True, 1), (True, 1), (False, 2), (True, 2))
"""Of problems in turn: whether parameters are limited, and how many made-up costs are."""

NUM_LIMITS = 3
BEYOND = 0.1
"""Retention below the lowest searched one for which problems are made too."""

NEARLY_ALL = 0.995
"""Of the dense excess: more is not asked for."""

APART = 0.15
"""Standard deviation between the shares that several limits allow: else one of them would mostly be the only one."""

COST_UNITS = 1_000_000
"""Of an average layer's dense excess in made-up costs."""

COARSEST, FINEST = 0.45, 0.1
"""Steps, as parts of a layer of average width, to which the options of a group may be brought."""


@dataclass(frozen=True, eq=False)
class Problems:
    """P problems: `costs` of one each, and the `slack` [P, J] of their budgets."""

    costs: ManyCosts
    slack: IntArray

    def __len__(self) -> int:
        return len(self.slack)

    def of(self, index: IntArray) -> "Problems":
        """Some of them."""
        return Problems(self.costs.of(index), self.slack[index])


@dataclass(frozen=True, eq=False)
class OptionSet:
    """What options keep, `fractions` [N, K], and the steps [N] in which latency grows with it, or None."""

    fractions: FloatArray
    steps: FloatArray | None = None

    @classmethod
    def usual(cls, encoding: Encoding) -> "OptionSet":
        """The options of the searched space."""
        return cls(encoding.fractions)

    @classmethod
    def random(cls, encoding: Encoding, rng: np.random.Generator) -> "OptionSet":
        """As requests may have it: brought down to coarse widths, or, under a latency in stairs, up to their ends."""
        usual = cls.usual(encoding).fractions
        kinds = [kind_of(decision) for decision in encoding.space.decisions]
        of_ffn = np.array([kind == (Sublayer.FFN,) for kind in kinds])
        # KV groups and layers are whole numbers already, and of few options.
        steps = np.where(of_ffn, 1.0, 1.0 / encoding.dense_units)
        ffn_units = encoding.dense_units[of_ffn]
        steps[of_ffn] = rng.uniform(FINEST, COARSEST) * (ffn_units.mean() / ffn_units if len(ffn_units) else 1.0)
        if rng.random() < 0.5:
            ends = np.minimum(np.ceil(usual / steps[:, None] - 1e-9) * steps[:, None], 1.0)
            return cls(ends, steps)
        down = np.maximum(np.floor(usual / steps[:, None] + 1e-9), 1.0) * steps[:, None]
        return cls(np.where((usual > 0.0) & (usual < 1.0), np.minimum(down, 1.0), usual))


def random_problems(
    encoding: Encoding, data: TrainingData, options: OptionSet, count: int, rng: np.random.Generator
) -> Problems:
    """`count` problems over `options`, from a little below the searched retentions up to nearly dense."""
    parameters = np.rint(options.fractions * encoding.parameters[:, -1:]).astype(np.int64)
    parameters -= parameters[:, :1]
    excess = np.zeros((NUM_LIMITS, count, *parameters.shape), dtype=np.int64)
    slack = np.zeros((count, NUM_LIMITS), dtype=np.int64)
    total, lowest = encoding.most_parameters, encoding.least_parameters
    low = max((float(data.retention[data.searched].min()) - BEYOND) * total - lowest, 0.0) / (total - lowest)
    # Stratified: one budget in each equal slice, so that no range is left out by chance.
    shares = low + (NEARLY_ALL - low) * rng.permutation((np.arange(count) + rng.random(count)) / count)
    spread = np.where(rng.random(count) < 0.5, APART, 0.0)
    for problem in range(count):
        of_parameters, others = KINDS[problem % len(KINDS)]
        tables = [parameters] if of_parameters else []
        tables += [made_up_costs(encoding, options, rng) for _ in range(others)]
        apart = rng.normal(0.0, spread[problem], len(tables)) if len(tables) > 1 else np.zeros(1)
        allowed = np.clip(shares[problem] + apart - apart.min(), 0.0, NEARLY_ALL)
        for j in range(NUM_LIMITS):
            # Where there are fewer limits, the first one is repeated, which changes nothing.
            of_limit = j if j < len(tables) else 0
            excess[j, problem] = tables[of_limit]
            slack[problem, j] = int(allowed[of_limit] * int(tables[of_limit][:, -1].sum()))
    return Problems(ManyCosts(excess), slack)


def made_up_costs(encoding: Encoding, options: OptionSet, rng: np.random.Generator) -> IntArray:
    """[N, K] above the cheapest options, what latency may look like: flat below some width, then in proportion or in
    stairs, layers of unequal price."""
    widths = options.fractions
    flat_below = rng.uniform(0.0, 0.5) * rng.integers(2)
    stairs = rng.choice([0, 2, 3, 4, 6])
    curve = np.maximum(widths - flat_below, 0.0)
    if options.steps is not None:
        curve = np.ceil(curve / options.steps[:, None] - 1e-9)
    elif stairs:
        curve = np.ceil(curve / curve[:, -1:] * stairs - 1e-9) / stairs
    prices = encoding.parameter_shares * len(widths) * np.exp(rng.normal(0.0, rng.choice([0.0, 0.3]), len(widths)))
    costs = (COST_UNITS * prices[:, None] * curve / curve[:, -1:]).astype(np.int64)
    found: IntArray = costs - costs[:, :1]
    return found
