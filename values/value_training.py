"""Fitting the values to the samples: in closed form, the process's constants by leave-one-out error.

Letters: N anchors, J regression terms, L decoder layers.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from pruning.arrays import FloatArray, IntArray
from values.basis import Basis, Float32Array
from values.dataset import TrainingData, frontier
from values.encoding import Encoding
from values.held_out import HeldOutResiduals, retention_groups
from values.kernel import Kernel
from values.values import Values, distances, weights_of

MAX_ANCHORS = 2048
"""Samples that the values keep: a request reads them all, and a fit is cubic in them."""

MAX_TUNING_ANCHORS = 768
"""Samples that the process's constants are chosen on."""

FRONTIER_SHARE = 0.75
"""Of the anchors: those nearest to the frontier. The rest are spread over everything else."""

LENGTHS = (0.7, 1.4, 2.8)
NOISES = (0.1, 0.3)
SLACKS = (1.0, 10.0, 100.0)
"""Constants that are tried, see `Kernel`; noise and slack in units of the scale."""


@dataclass(frozen=True)
class ValueFit:
    """Fitted values, and how far off they are.

    Attributes:
        values: after all anchors.
        anchors: [N] which samples they are.
        alone: residuals of leave-one-out cross-validation.
        grouped: residuals of leave-one-group-out cross-validation.
        groups: [N] of the anchors, as `retention_groups`; those of none (-1) are alone in `grouped` too.
        weights: [N] of the anchors in (0, 1]: near the frontier counts most.
    """

    values: Values
    anchors: IntArray
    alone: HeldOutResiduals
    grouped: HeldOutResiduals
    groups: IntArray
    weights: FloatArray

    @property
    def error(self) -> float:
        """Weighted mean absolute leave-one-out error of log KL."""
        return _weighted_error(self.alone.errors, self.weights)


def choose_anchors(data: TrainingData, most: int) -> IntArray:
    """Indices [N] of at most `most` samples: the best of every range of retention in turn, some of the others."""
    count = data.num_samples
    if count <= most:
        return np.arange(count)
    gap, retention = data.gap, data.retention
    bins = (retention * 100.0).astype(np.int64)
    rank = np.empty(count, dtype=np.int64)
    for found in np.unique(bins):
        members = np.flatnonzero(bins == found)
        rank[members[np.argsort(gap[members], kind="stable")]] = np.arange(len(members))
    order = np.lexsort((gap, rank))
    near = order[: int(most * FRONTIER_SHARE)]
    others = order[len(near) :]
    spread = others[np.linspace(0, len(others) - 1, most - len(near)).astype(np.int64)]
    return np.sort(np.concatenate([near, spread]))


def fit_values(encoding: Encoding, data: TrainingData) -> ValueFit:
    """The values that `data` speak for. Deterministic."""
    basis = Basis(encoding)
    weights = weights_of(data.gap)
    few = choose_anchors(data, MAX_TUNING_ANCHORS)
    tuning = _Problem(basis, data.fractions[few], data.log_kl[few], weights[few])
    candidates = [_Constants(*found) for found in itertools.product(LENGTHS, NOISES, SLACKS)]
    best = min(candidates, key=lambda constants: _weighted_error(tuning.solve(constants).errors, weights[few]))
    anchors = choose_anchors(data, MAX_ANCHORS)
    problem = _Problem(basis, data.fractions[anchors], data.log_kl[anchors], weights[anchors])
    solution = problem.solve(best)
    tensors: dict[str, FloatArray | Float32Array] = {
        "places": problem.places,
        "fades": problem.fades,
        "weights": weights[anchors],
        "alpha": solution.alpha,
        "readout": solution.readout,
        "frontier": frontier(data.retention, data.log_kl, np.linspace(0.0, 1.0, 101)),
    }
    kernel = Kernel(solution.scale, best.length, best.noise, best.slack)
    stored = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    values = Values(basis, kernel, stored)
    fractions, log_kl = data.fractions[anchors], data.log_kl[anchors]
    groups = retention_groups(data.retention[anchors], data.searched[anchors])
    # What belongs to no group gets one of its own.
    blocks = np.where(groups < 0, len(anchors) + np.arange(len(anchors)), groups)
    errors_of_groups = solution.errors_without(blocks)
    without = values.held_out(fractions, errors_of_groups, log_kl, blocks)
    drift = drift_of(without, problem.nearest_outside(blocks), weights[anchors] * (groups >= 0))
    values = Values(basis, replace(kernel, drift=drift / solution.scale), stored)
    alone = values.held_out(fractions, solution.errors, log_kl, np.arange(len(anchors)))
    grouped = values.held_out(fractions, errors_of_groups, log_kl, blocks)
    return ValueFit(values, anchors, alone, grouped, groups, weights[anchors])


@dataclass(frozen=True)
class _Constants:
    length: float
    noise: float
    slack: float


@dataclass(frozen=True)
class _Solution:
    """`alpha` [N] of covariances in units of s^2, whose `inverse` [N, N] it comes from, `readout` [J], and s."""

    alpha: FloatArray
    inverse: FloatArray
    readout: FloatArray
    scale: float

    @property
    def errors(self) -> FloatArray:
        """[N] of each sample by the fit without it: alpha_n / (M^-1)_nn (Dubrule 1983)."""
        errors: FloatArray = self.alpha / np.diag(self.inverse)
        return errors

    def errors_without(self, groups: IntArray) -> FloatArray:
        """[N] of each sample by the fit without its group: (M^-1)_gg^-1 alpha_g, the same with blocks."""
        errors = self.errors
        numbers, sizes = np.unique(groups, return_counts=True)
        for group in numbers[sizes > 1]:
            members = np.flatnonzero(groups == group)
            errors[members] = np.linalg.solve(self.inverse[np.ix_(members, members)], self.alpha[members])
        return errors


class _Problem:
    """Kriging of N samples: everything that does not depend on the constants, worked out once."""

    def __init__(self, basis: Basis, fractions: FloatArray, log_kl: FloatArray, weights: FloatArray) -> None:
        own = basis.own_kl(fractions)
        self.places = basis.places(fractions)
        self.fades = basis.fade(fractions)
        self._apart = distances(self.places, self.places).astype(np.float64)
        self._terms = basis.terms(fractions, own)
        self._target = log_kl - basis.base(own)
        self._weights = weights

    def nearest_outside(self, groups: IntArray) -> FloatArray:
        """[N] how far each sample is from the nearest one of another of `groups` [N]; infinite if there is none."""
        apart = np.where(groups[:, None] == groups, np.inf, self._apart)
        nearest: FloatArray = apart.min(axis=1)
        return nearest

    def solve(self, constants: _Constants) -> _Solution:
        """Universal kriging: regression and process at once."""
        covariance = np.exp(-self._apart / constants.length)
        covariance += constants.slack * self._terms @ self._terms.T
        covariance *= np.outer(self.fades, self.fades)
        covariance[np.diag_indices_from(covariance)] += constants.noise**2 / self._weights
        inverse = np.linalg.inv(covariance)
        alpha = inverse @ self._target
        readout = constants.slack * (self._terms * self.fades[:, None]).T @ alpha
        scale = math.sqrt(max(float(self._target @ alpha) / len(alpha), 1e-12))
        return _Solution(alpha, inverse, readout, scale)


def drift_of(residuals: HeldOutResiduals, nearest: FloatArray, weights: FloatArray) -> float:
    """Standard deviation of log KL a unit of distance from the `nearest` [N] sample: what of the squares of `residuals`
    [N] their deviations do not explain, by `weights` [N]; 0 where they explain all, or there is nothing to tell."""
    known = np.isfinite(nearest) & (weights > 0.0)
    unexplained = weights[known] @ (residuals.errors[known] ** 2 - residuals.deviations[known] ** 2)
    distance = float(weights[known] @ nearest[known] ** 2)
    return math.sqrt(max(float(unexplained), 0.0) / distance) if distance > 0.0 else 0.0


def _weighted_error(errors: FloatArray, weights: FloatArray) -> float:
    return float(np.average(np.abs(errors), weights=weights))
