"""What the levels of a request cost: the masks that keep a decoding within its limits, and the features it is given.

Costs count from the lowest level up ("excess"), so what is the same in every configuration drops out: a limit on bytes,
operations or parameters looks the same to the policy, and only costs that are shaped otherwise look different.
Letters: B batch, J limits, L decoder layers, K levels.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray, IntArray
from pruning.planning.levels import LevelGrid
from pruning.planning.limits import Limits

BoolArray = NDArray[np.bool_]

NUM_SCALARS = 6


def num_step_features(num_levels: int) -> int:
    """Numbers that `LevelCosts.step_features` gives."""
    return NUM_SCALARS + num_levels - 1


@dataclass(frozen=True, eq=False)
class LevelCosts:
    """The excess costs of all levels under each limit, int64 [J, L, K], 0 at level 1 and non-decreasing.

    What may be spent ("slack", int64 [J]) is not part of it: one table serves many budgets.
    """

    excess: IntArray

    @classmethod
    def of_grid(cls, grid: LevelGrid) -> "LevelCosts":
        """FFN parameters."""
        costs = np.array(grid.costs, dtype=np.int64)[None]
        return cls(costs - costs[:, :, :1])

    @classmethod
    def of_limits(cls, grid: LevelGrid, limits: Limits) -> tuple["LevelCosts", IntArray, IntArray]:
        """Costs of the grid's levels brought down to allowed widths; those widths [L, K]; and the slack [J].

        The slack is negative where level 1 of every layer is already too much.
        """
        K, layers = grid.num_levels, np.arange(grid.num_layers)
        indices = np.stack([limits.steps.at_most([row[k] for row in grid.widths]) for k in range(K)], axis=1)  # [L, K]
        costs = limits.table[:, layers[:, None], indices]
        widths: IntArray = limits.steps.table[layers[:, None], indices]
        return cls(costs - costs[:, :, :1]), widths, limits.room - costs[:, :, 0].sum(axis=1)

    @property
    def num_layers(self) -> int:
        return int(self.excess.shape[1])

    @cached_property
    def most_from(self) -> IntArray:
        """[L + 1, J] excess of layers l.. when dense."""
        dense = self.excess[:, :, -1]
        return np.concatenate([dense[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros_like(dense[:, :1])], axis=1).T.copy()

    @cached_property
    def largest_step(self) -> IntArray:
        """[J] the most that going one level up can cost."""
        steps: IntArray = np.diff(self.excess, axis=2).max(axis=(1, 2))
        return steps

    @cached_property
    def _columns(self) -> list[IntArray]:
        """[K, J] of each layer."""
        return [np.ascontiguousarray(self.excess[:, layer].T) for layer in range(self.num_layers)]

    @cached_property
    def _totals(self) -> FloatArray:
        """[J] excess of the dense model, at least 1."""
        totals: FloatArray = np.maximum(self.most_from[0], 1).astype(np.float64)
        return totals

    @cached_property
    def _shapes(self) -> FloatArray:
        """[L, J, K]: the layer's share in the dense excess times L, then its levels 2..K relative to its dense one."""
        dense = np.maximum(self.excess[:, :, -1:], 1)
        share = self.num_layers * self.excess[:, :, -1:] / self._totals[:, None, None]
        return np.concatenate([share, self.excess[:, :, 1:] / dense], axis=2).transpose(1, 0, 2).copy()

    def spent(self, levels: IntArray) -> IntArray:
        """[B, J] excess of 0-based `levels` [B, L]."""
        places = levels + np.arange(self.num_layers) * self.excess.shape[2]
        spent: IntArray = self.excess.reshape(len(self.excess), -1).take(places, axis=1).sum(axis=2).T
        return spent

    def after(self, layer: int, slack: IntArray, levels: IntArray) -> IntArray:
        """Slack [B, J] left of `slack` [B, J] after 0-based `levels` [B] of `layer`."""
        left: IntArray = slack - self._columns[layer][levels]
        return left

    def feasible(self, layer: int, slack: IntArray) -> BoolArray:
        """Which levels may be chosen, [B, K], when layers l.. may spend `slack` [B, J], not negative. None is empty.

        A level is feasible if it fits, and if the layers after it can use up at least one limit but for one step: a
        plan gives no capacity away. Under one limit that is `LevelGrid.feasible_levels`.
        """
        left = slack[:, None] - self._columns[layer]  # [B, K, J]
        fitting: BoolArray = np.all(left >= 0, axis=2)
        using: BoolArray = fitting & np.any(left < self.most_from[layer + 1] + self.largest_step, axis=2)
        if not using.any(axis=1).all():
            highest = fitting & (fitting.cumsum(axis=1) == fitting.sum(axis=1, keepdims=True))
            using = np.where(using.any(axis=1, keepdims=True), using, highest)
        return using

    def asked_features(self, slack: IntArray) -> FloatArray:
        """[B, J, 2] what `slack` [B, J] at the start allows of the dense excess, in [0, 1], and its logarithm."""
        asked = np.minimum(slack / self._totals, 1.0)
        return np.stack([asked, np.log(np.maximum(asked, 0.01))], axis=2)

    def step_features(self, layer: int, slack: IntArray, asked: FloatArray) -> FloatArray:
        """[B, 5 + K]: what `slack` [B, J], left for layers l.., means under the limit that is tightest there.

        `asked` [B, J, 2] as `asked_features`; the share of the dense model's excess that is left; the share of what
        layers l.. cost dense; this layer's dense excess over what is left; this layer's share of all; and the shape of
        its costs, levels 2..K relative to dense. None is over 2 but the layer's share.
        """
        rest = self.most_from[layer]
        # What costs nothing from here on limits nothing, however little of it is left.
        reach = np.where(rest > 0, slack / np.maximum(rest, 1), np.inf)
        j = reach.argmin(axis=1) if slack.shape[1] > 1 else np.zeros(len(slack), dtype=np.int64)
        rows = np.arange(len(slack))
        left = slack[rows, j]
        features = np.empty((len(slack), NUM_SCALARS + self.excess.shape[2] - 1))
        features[:, :2] = asked[rows, j]
        features[:, 2] = np.minimum(left / self._totals[j], 2.0)
        features[:, 3] = np.minimum(reach[rows, j], 2.0)
        features[:, 4] = np.minimum(self._columns[layer][-1, j] / np.maximum(left, 1), 2.0)
        features[:, 5:] = self._shapes[layer, j]
        return features

    def trajectory(self, levels: IntArray, slack: IntArray) -> tuple[FloatArray, BoolArray]:
        """Features [B, L, 5 + K] and feasible levels [B, L, K] along the decisions of 0-based `levels` [B, L]."""
        asked, features, masks = self.asked_features(slack), [], []
        for layer in range(self.num_layers):
            features.append(self.step_features(layer, slack, asked))
            masks.append(self.feasible(layer, slack))
            slack = self.after(layer, slack, levels[:, layer])
        return np.stack(features, axis=1), np.stack(masks, axis=1)
