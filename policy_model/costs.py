"""What the policy is told of the costs of its decisions: features of what is asked, what is left and what options cost.

Costs count from the cheapest option up, so what is the same in every choice drops out: a limit on bytes, operations or
parameters looks the same to the policy, and only costs that are shaped otherwise look different.
Letters: B batch, J limits, N decisions, K options, as many in each.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pruning.arrays import BoolArray, FloatArray, IntArray
from pruning.planning.cost_table import CostTable
from pruning.planning.limits import Limits
from pruning.planning.space import Space
from values.encoding import Encoding

NUM_SCALARS = 6


def num_step_features(num_options: int) -> int:
    """Numbers that `DecisionCosts.step_features` gives."""
    return NUM_SCALARS + num_options - 1


def costs_within(levels: Space, limits: Limits) -> tuple["DecisionCosts", IntArray, IntArray, IntArray]:
    """Costs of the `levels` brought down to what `limits` allow; which options [N, K] of theirs that are; the units
    [N, K] of those; and the slack [J].

    The slack is negative where even the first level of every decision is too much.
    """
    allowed = limits.space.units
    found = [np.searchsorted(row, wanted, side="right") - 1 for row, wanted in zip(allowed, levels.units, strict=True)]
    options = np.maximum(np.stack(found), 0)  # [N, K]
    units = np.stack([row[k] for row, k in zip(allowed, options, strict=True)])
    excess = limits.table.excess[:, np.arange(len(options))[:, None], options]
    return DecisionCosts(excess - excess[:, :, :1]), options, units, limits.spare - excess[:, :, 0].sum(axis=1)


@dataclass(frozen=True, eq=False)
class DecisionCosts(CostTable):
    """The costs of N decisions of K options each, which grow along the options, and their features."""

    @cached_property
    def _totals(self) -> FloatArray:
        """[J] excess of the dense model, at least 1."""
        totals: FloatArray = np.maximum(self.most_from[0], 1).astype(np.float64)
        return totals

    @cached_property
    def _shapes(self) -> FloatArray:
        """[N, J, K]: the decision's share in the dense excess times N, then its options 1..K-1 relative to its last."""
        dense = np.maximum(self.excess[:, :, -1:], 1)
        share = self.num_decisions * self.excess[:, :, -1:] / self._totals[:, None, None]
        return np.concatenate([share, self.excess[:, :, 1:] / dense], axis=2).transpose(1, 0, 2).copy()

    def asked_features(self, slack: IntArray) -> FloatArray:
        """[B, J, 2] what `slack` [B, J] at the start allows of the dense excess, in [0, 1], and its logarithm."""
        asked = np.minimum(slack / self._totals, 1.0)
        return np.stack([asked, np.log(np.maximum(asked, 0.01))], axis=2)

    def step_features(self, n: int, slack: IntArray, asked: FloatArray) -> FloatArray:
        """[B, 5 + K]: what `slack` [B, J], left for decisions n.., means under the limit that is tightest there.

        `asked` [B, J, 2] as `asked_features`; the share of the dense model's excess that is left; the share of what
        decisions n.. cost dense; this one's dense excess over what is left; its share of all; and the shape of its
        costs, options 1..K-1 relative to dense. None is over 2 but the share.
        """
        rest = self.most_from[n]
        # What costs nothing from here on limits nothing, however little of it is left.
        reach = np.where(rest > 0, slack / np.maximum(rest, 1), np.inf)
        j = reach.argmin(axis=1) if slack.shape[1] > 1 else np.zeros(len(slack), dtype=np.int64)
        rows = np.arange(len(slack))
        left = slack[rows, j]
        features = np.empty((len(slack), NUM_SCALARS + self.excess.shape[2] - 1))
        features[:, :2] = asked[rows, j]
        features[:, 2] = np.minimum(left / self._totals[j], 2.0)
        features[:, 3] = np.minimum(reach[rows, j], 2.0)
        features[:, 4] = np.minimum(self.columns[n][-1, j] / np.maximum(left, 1), 2.0)
        features[:, 5:] = self._shapes[n, j]
        return features

    def trajectory(self, choices: IntArray, slack: IntArray) -> tuple[FloatArray, BoolArray]:
        """Features [B, N, 5 + K] and feasible options [B, N, K] along `choices` [B, N]."""
        asked, features, masks = self.asked_features(slack), [], []
        for n in range(self.num_decisions):
            features.append(self.step_features(n, slack, asked))
            masks.append(self.feasible(n, slack))
            slack = self.after(n, slack, choices[:, n])
        return np.stack(features, axis=1), np.stack(masks, axis=1)


def parameter_costs(encoding: Encoding) -> DecisionCosts:
    """FFN parameters of what the policy chooses from."""
    return DecisionCosts((encoding.parameters - encoding.parameters[:, :1])[None])
