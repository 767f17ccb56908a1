"""What the search learns while it runs: a Gaussian process over log KL, fitted to the samples seen.

    log(KL(x) / KL*_t) ~ m + a f(x) + GP(0, s^2 k),   k(x, x') = A/2 + B/2 + 2 A^2 + B^2

x is a choice, KL*_t the least KL seen at target t. f is what the additive model says, the log of the summed one-layer
sensitivities, less that of the best choice of the target: right at low sparsity, misleading at high, so its slope a is
learnt. A is the mean over layers of exp(-d^2 / 2), d the difference of the layer's retentions in units of 0.4; B the
same, d the difference of the logarithms of its one-layer sensitivities in units of their spread. A and B make the
process additive over layers, the squares add what pairs of layers do together: the additive kernels of first
and second order of Duvenaud et al. (arXiv 1112.4394, section 2). The scale s is the one under which the samples are
likeliest. Samples are the less certain the further they are above the best of their target, so that the process is
right where the optimum is, not on average. Where a layer has two decisions, FFN and attention, sums and means are over
decisions, and what is skipped retains 0. All constants are in nats of log KL: the scale of the metric drops out.

Letters: L layers, each with one decision, K options of each, N samples, n choices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray
from pruning.planning.space import Choice, Space
from values.kl_floor import RELATIVE_SENSITIVITY_FLOOR, relative_floor

MAX_SAMPLES = 400
"""Samples that a fit uses at most, those of largest weight: the cost of a fit is cubic in them."""

RETENTION_SCALE = 0.4
"""Retentions this far apart in one layer are nearly unrelated."""

ROUGHNESSES = (0.0, 0.5)
"""Two views of the samples, which a search takes in turn: the part of the effect of an option that tells nothing
about the next one. The smooth view learns fast, the rough one doubts what it has not seen: where KL jumps from option
to option, the smooth one alone is sure of too much, and stays where it is."""

LEVEL_VARIANCE = 0.5
SENSITIVITY_VARIANCE = 0.5
LEVEL_PAIR_VARIANCE = 2.0
SENSITIVITY_PAIR_VARIANCE = 1.0

VARIANCE = LEVEL_VARIANCE + SENSITIVITY_VARIANCE + LEVEL_PAIR_VARIANCE + SENSITIVITY_PAIR_VARIANCE
"""Of any one choice: A = B = 1 with itself."""

SLOPE_MEAN = 0.5
SLOPE_SD = 0.3

NOISE_SD = 0.05
"""What the process cannot explain about a choice as good as the best."""

NEARNESS = 0.5
"""A sample this far above the best of its target weighs 1/e."""

OTHER_TARGET_WEIGHT = 0.3
"""A sample of another target weighs this much."""

LEAST_WEIGHT = 1e-3

SCALE_RANGE = (0.1, 3.0)
"""Of s: a handful of samples must not make the process certain, nor lost."""


@dataclass(frozen=True, slots=True)
class ScoredChoice:
    """One sample as the surrogate sees it: which target it was scored for, and log KL (floored)."""

    target: int
    choice: Choice
    log_kl: float


@dataclass(frozen=True)
class Prediction:
    """log(KL / KL*) of n choices: mean [n] and standard deviation [n]. KL* is the target's best so far."""

    mean: FloatArray
    sd: FloatArray


def retentions(space: Space) -> FloatArray | None:
    """[N, K] what each option keeps of its decision's sites, as a fraction, NaN where a decision has no such option.

    None if all decisions have as many options, evenly spaced up to the dense model: option k of K then keeps about
    (k + 1) / K, since widths are rounded, but never by a whole step.
    """
    N, K = space.num_decisions, int(space.counts.max())
    kept = np.full((N, K), np.nan)
    for row, amounts, dense in zip(kept, space.amounts, space.dense_units, strict=True):
        row[: len(amounts)] = amounts / dense
    # NaN is not within any distance.
    return None if bool((np.abs(K * kept - np.arange(1, K + 1)) < 1).all()) else kept


class Kernel:
    """Covariances between choices of a space, from the one-layer sensitivities [L, K] and one of ROUGHNESSES.

    `retention` is as `retentions` gives it. What `sensitivity` says of options that do not exist must be 0.
    """

    def __init__(self, sensitivity: FloatArray, roughness: float, retention: FloatArray | None = None) -> None:
        L, K = sensitivity.shape
        positive = np.maximum(sensitivity, 0.0)
        self._floor = relative_floor(RELATIVE_SENSITIVITY_FLOOR, positive)
        self._flat = positive.ravel()
        logs = np.log(positive + self._floor)
        self.shape = (L, K)
        if retention is None:
            spread = float(logs.std(axis=0).mean()) or 1.0
            self._level = _similarity(np.arange(1, K + 1) / K / RETENTION_SCALE, roughness) / L
        else:
            spread = float(np.nanstd(np.where(np.isnan(retention), np.nan, logs), axis=0).mean()) or 1.0
            kept = np.nan_to_num(retention, nan=1.0)
            self._level = np.stack([_similarity(row / RETENTION_SCALE, roughness) for row in kept]) / L
        self._sensitivity = np.stack([_similarity(row / spread, roughness) for row in logs]) / L

    def towards(self, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What `between` needs of one side, [L K, N] twice, from one-hot rows [N, L K]: worked out once a fit."""
        L, K = self.shape
        by_layer = rows.reshape(len(rows), L, K)
        level = _by_decision(by_layer, self._level) if self._level.ndim == 3 else by_layer @ self._level
        sensitivity = _by_decision(by_layer, self._sensitivity)
        return level.reshape(len(rows), L * K).T, sensitivity.reshape(len(rows), L * K).T

    @staticmethod
    def between(rows: FloatArray, towards: tuple[FloatArray, FloatArray]) -> FloatArray:
        """[n, N] covariances of one-hot rows [n, L K] with the other side's."""
        level, sensitivity = towards
        return _combine(rows @ level, rows @ sensitivity)

    def trend(self, rows: FloatArray) -> FloatArray:
        """[n] log of the summed sensitivities of one-hot rows [n, L K]."""
        trend: FloatArray = np.log(rows @ self._flat + self._floor)
        return trend

    def one_hot(self, choices: NDArray[np.int64]) -> FloatArray:
        """[n, L K] from options [n, L]."""
        L, K = self.shape
        rows = np.zeros((len(choices), L * K))
        rows[np.arange(len(choices))[:, None], np.arange(L) * K + choices] = 1.0
        return rows


class Surrogate:
    """The process after the samples it was fitted to; see `fit_surrogate`.

    Args:
        rows: [N, L K] one-hot samples.
        trend: [N] f of the samples; `centre` is what to take off the trend of other choices to get theirs.
        observed: [N] log(KL / KL*_t).
        weights: [N] in (0, 1].
        reference: log KL*_t of the target that it is for: what predictions are relative to.
    """

    def __init__(
        self,
        kernel: Kernel,
        rows: FloatArray,
        trend: FloatArray,
        observed: FloatArray,
        weights: FloatArray,
        centre: float,
        reference: float,
    ) -> None:
        self.reference = reference
        self._kernel = kernel
        self._towards = kernel.towards(rows)
        self._trend = trend
        self._centre = centre
        residual = observed - SLOPE_MEAN * trend
        self._mean = float(np.average(residual, weights=weights)) if len(rows) else 0.0
        covariance = self._between(rows, trend) + np.diag(NOISE_SD**2 / weights)
        self._root = np.linalg.inv(np.linalg.cholesky(covariance)) if len(rows) else np.zeros((0, 0))
        whitened = self._root @ (residual - self._mean)
        self._alpha = self._root.T @ whitened
        likeliest = float(np.sqrt(np.mean(whitened**2))) if len(rows) else 1.0
        self._scale = min(max(likeliest, SCALE_RANGE[0]), SCALE_RANGE[1])

    def predict(self, choices: NDArray[np.int64]) -> Prediction:
        """Posterior of options [n, L]."""
        rows, trend = self._features(choices)
        covariance = self._between(rows, trend)
        explained = np.square(covariance @ self._root.T).sum(axis=1)
        variance = VARIANCE + SLOPE_SD**2 * trend**2 - explained
        sd = self._scale * np.sqrt(np.maximum(variance, 1e-12))
        return Prediction(self._mean + SLOPE_MEAN * trend + covariance @ self._alpha, sd)

    def means(self, choices: NDArray[np.int64]) -> FloatArray:
        """Posterior mean [n] of options [n, L]: `predict` without the costly half."""
        rows, trend = self._features(choices)
        means: FloatArray = self._mean + SLOPE_MEAN * trend + self._between(rows, trend) @ self._alpha
        return means

    def _features(self, choices: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """One-hot rows [n, L K] and trend [n]."""
        rows = self._kernel.one_hot(choices)
        return rows, self._kernel.trend(rows) - self._centre

    def _between(self, rows: FloatArray, trend: FloatArray) -> FloatArray:
        """[n, N] covariances with the samples."""
        covariance: FloatArray = self._kernel.between(rows, self._towards) + SLOPE_SD**2 * trend[:, None] * self._trend
        return covariance

    def table(self, incumbent: Choice) -> FloatArray:
        """[L, K] what giving one layer another option changes in the mean, the other layers as in `incumbent` [L].

        Additive, as a prior over single decisions has to be; pairs of layers are in it as they stand at the incumbent.
        """
        L, K = self._kernel.shape
        changed = np.repeat(np.asarray(incumbent, dtype=np.int64)[None], L * K, axis=0)
        changed[np.arange(L * K), np.repeat(np.arange(L), K)] = np.tile(np.arange(K), L)
        table: FloatArray = self.means(changed).reshape(L, K)
        table -= table[np.arange(L), np.asarray(incumbent)][:, None]
        return table


def fit_surrogate(kernel: Kernel, samples: Sequence[ScoredChoice], *, target: int) -> Surrogate:
    """Fit to `samples` of all targets, for use at `target`. They may be none: then nothing is known."""
    L, _ = kernel.shape
    targets = np.array([s.target for s in samples], dtype=np.int64)
    gaps = np.array([s.log_kl for s in samples])
    rows = kernel.one_hot(np.array([s.choice for s in samples], dtype=np.int64).reshape(len(samples), L))
    trend = kernel.trend(rows)
    centre = float(trend.mean()) if len(samples) else 0.0
    reference = 0.0
    for known in np.unique(targets):
        members = np.flatnonzero(targets == known)
        best = members[np.argmin(gaps[members])]
        if known == target:
            centre, reference = float(trend[best]), float(gaps[best])
        gaps[members] -= gaps[best]
        trend[members] -= trend[best]
    own = np.where(targets == target, 1.0, OTHER_TARGET_WEIGHT)
    weights = np.maximum(own * np.exp(-gaps / NEARNESS), LEAST_WEIGHT)
    kept = np.sort(np.argsort(-weights, kind="stable")[:MAX_SAMPLES])
    return Surrogate(kernel, rows[kept], trend[kept], gaps[kept], weights[kept], centre, reference)


def expected_improvement(prediction: Prediction) -> FloatArray:
    """[n] nats by which each choice is expected to beat the best log KL so far (Jones et al. 1998, eq. 15)."""
    z = -prediction.mean / prediction.sd
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    below = 0.5 * np.array([math.erfc(-x / math.sqrt(2.0)) for x in z])
    improvement: FloatArray = prediction.sd * (z * below + density)
    return improvement


def _similarity(values: FloatArray, roughness: float) -> FloatArray:
    """[K, K] of the differences d of values [K]: exp(-d^2 / 2), less for options that are not the same."""
    smooth = np.exp(-0.5 * (values[:, None] - values[None]) ** 2)
    similarity: FloatArray = (1.0 - roughness) * smooth + roughness * np.eye(len(values))
    return similarity


def _by_decision(rows: FloatArray, similarities: FloatArray) -> FloatArray:
    """[N, L, K] one-hot rows times the matrices [L, K, K] of their decisions."""
    product: FloatArray = (rows.transpose(1, 0, 2) @ similarities).transpose(1, 0, 2)
    return product


def _combine(level: FloatArray, sensitivity: FloatArray) -> FloatArray:
    return (
        LEVEL_VARIANCE * level
        + SENSITIVITY_VARIANCE * sensitivity
        + LEVEL_PAIR_VARIANCE * level**2
        + SENSITIVITY_PAIR_VARIANCE * sensitivity**2
    )
