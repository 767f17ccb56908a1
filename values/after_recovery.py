"""What configurations are worth after recovery, from what all are worth before and what a few are worth after.

Two fidelities in one model (as cokriging has them: Kennedy and O'Hagan, Biometrika 87, 2000), for few points:

    log KL after = log KL before + m(target) + w . z

where z are a few features of the configuration. m is the target's mean; w is a ridge estimate, and zero, so that the
order is the one before, unless leaving out one point after the other says by more than a standard error that it
predicts better. Letters: C candidates of all targets, R of them recovered, F features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.arrays import FloatArray, IntArray
from values.surrogate import Prediction, expected_improvement

RIDGES = (10.0, 3.0, 1.0)
"""Penalties that are tried, from hard to mild, in units of a point's own weight."""

LEAST_POINTS = 4
"""Left out one by one, before w may be anything but zero."""

PRIOR_DEVIATION = 0.3
PRIOR_POINTS = 2
"""Of log KL after around the model, and how many points that counts as: two points tell no spread."""


def recovery_features(architecture: Architecture, anatomy: ModelAnatomy) -> tuple[float, float]:
    """The share of sub-layers that are skipped, and the standard deviation over layers of the share that each loses."""
    options = architecture.options
    lost = np.zeros((anatomy.num_layers, len(Sublayer)))
    for layer in anatomy.layers:
        for column, sublayer in enumerate(Sublayer):
            dense = layer.units(sublayer)
            option = options.get(Site(layer.index, sublayer))
            lost[layer.index, column] = 0.0 if option is None else 1.0 - option.units / dense
    return float((lost == 1.0).mean()), float(lost.mean(axis=1).std())


@dataclass(frozen=True, eq=False)
class RecoveredValues:
    """The model, fitted.

    Attributes:
        targets: [C] the target of each candidate.
        expected: [C] log KL after; of those that were recovered the mean of what was measured and what the others say
            of them, each by its variance; NaN where nothing of the target was recovered.
        deviation: of `expected` of those that were not, in nats.
        recovered: [R] which were.
        points: left out one by one: those that share their target with another.
        error_of_order: root mean squared error of these with w = 0; NaN without any.
        error: the same of the model as it is.
        ridge: the penalty that was taken; None: w = 0.
    """

    targets: IntArray
    expected: FloatArray
    deviation: float
    recovered: IntArray
    points: int
    error_of_order: float
    error: float
    ridge: float | None

    @classmethod
    def fit(
        cls,
        targets: IntArray,
        before: FloatArray,
        features: FloatArray,
        after: Mapping[int, float],
        *,
        num_answers: int,
    ) -> "RecoveredValues":
        """From log KL `before` [C], `features` [C, F], and log KL `after` of candidates by their number.

        `num_answers` that KL after was measured on: its logarithm is uncertain by about 1 / sqrt(num_answers), as
        configurations of the reference at half their FFN differ from one draw of conversations to the next
        (docs/search.md).
        """
        known = np.array(sorted(after), dtype=np.int64)
        z = _standardised(np.column_stack([before, features]), targets)
        gain = np.array([after[int(i)] for i in known]) - before[known]
        own = targets[known]
        shared = np.flatnonzero([(own == t).sum() > 1 for t in own])
        errors = {ridge: _left_out(z[known], gain, own, shared, ridge) for ridge in (math.inf, *RIDGES)}
        ridge = _chosen(errors)
        squares = errors[ridge] ** 2
        deviation = float(np.sqrt((PRIOR_POINTS * PRIOR_DEVIATION**2 + squares.sum()) / (PRIOR_POINTS + len(shared))))
        weights = _weights(z[known], gain, own, ridge)
        expected = np.full(len(before), np.nan)
        for target in np.unique(own):
            mean = float((gain - z[known] @ weights)[own == target].mean())
            of_target = targets == target
            expected[of_target] = (before + mean + z @ weights)[of_target]
        measured = before[known] + gain
        expected[known] = measured
        noise = 1.0 / num_answers
        trust = noise / (noise + deviation**2)
        expected[known[shared]] = measured[shared] - trust * errors[ridge]
        return cls(
            targets,
            expected,
            deviation,
            known,
            len(shared),
            _root_mean_square(errors[math.inf]),
            _root_mean_square(errors[ridge]),
            None if math.isinf(ridge) else ridge,
        )

    def best(self, target: int) -> int | None:
        """The candidate of least expected log KL among the target's recovered ones; None if there is none."""
        own = self.recovered[self.targets[self.recovered] == target]
        return int(own[np.argmin(self.expected[own])]) if len(own) else None

    def improvements(self) -> FloatArray:
        """[C] by how many nats each candidate is expected to beat its target's best; nothing where it was recovered,
        infinite where nothing of the target was."""
        found = np.zeros(len(self.targets))
        for target in np.unique(self.targets):
            own = self.targets == target
            best = self.best(int(target))
            if best is None:
                found[own] = math.inf
                continue
            means = self.expected[own] - self.expected[best]
            found[own] = expected_improvement(Prediction(means, np.full(len(means), self.deviation)))
        found[self.recovered] = 0.0
        return found


def _standardised(columns: FloatArray, targets: IntArray) -> FloatArray:
    """[C, F] without the mean of each target, by the standard deviation of all; what does not vary is zero."""
    centred = columns.astype(np.float64)
    for target in np.unique(targets):
        centred[targets == target] -= centred[targets == target].mean(axis=0)
    spread = centred.std(axis=0)
    varies = spread > 1e-9
    return np.where(varies, centred / np.where(varies, spread, 1.0), 0.0)


def _weights(z: FloatArray, gain: FloatArray, own: IntArray, ridge: float) -> FloatArray:
    """w [F]: differences between targets take no part."""
    if math.isinf(ridge):
        return np.zeros(z.shape[1])
    x, y = z.copy(), gain.copy()
    for target in np.unique(own):
        x[own == target] -= x[own == target].mean(axis=0)
        y[own == target] -= y[own == target].mean()
    found = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
    return np.asarray(found, dtype=np.float64)


def _left_out(z: FloatArray, gain: FloatArray, own: IntArray, shared: IntArray, ridge: float) -> FloatArray:
    """Of each of `shared`, what was measured less what the other points say of it."""
    errors = []
    for index in shared:
        others = np.arange(len(own)) != index
        weights = _weights(z[others], gain[others], own[others], ridge)
        mean = (gain - z @ weights)[others & (own == own[index])].mean()
        errors.append(float(gain[index] - z[index] @ weights - mean))
    return np.array(errors)


def _chosen(errors: Mapping[float, FloatArray]) -> float:
    """The penalty of least error, if it beats w = 0 by more than a standard error of their paired difference."""
    base = errors[math.inf] ** 2
    best = min(RIDGES, key=lambda ridge: float((errors[ridge] ** 2).sum()))
    gained = base - errors[best] ** 2
    if len(base) < LEAST_POINTS or gained.mean() <= gained.std(ddof=1) / math.sqrt(len(base)):
        return math.inf
    return best


def _root_mean_square(errors: FloatArray) -> float:
    return float(np.sqrt((errors**2).mean())) if len(errors) else math.nan
