"""What the search learns while it runs: an additive table of log KL, re-fitted to the samples seen.

    log(KL(k_1..k_L) / KL*_t) ~ b_t + a_1 F1 + a_2 F2 + sum_l R[l, k_l]

KL*_t is the least KL seen at target t, and b_t a level of its own. F1 and F2 are sums over layers of two transforms of
the one-layer sensitivities s[l, k]: log(1 + s/S) and sqrt(s/S), with S the sum of s at the incumbent. R is a free
table, smooth along levels. Fitted by Bayesian ridge regression: a Gaussian prior on every coefficient, samples weighted
by how near they are to the best of their target, so that the table is right where the optimum is, not on average. At
the start (a_1 = 1, R = 0) it is the additive sensitivity model; where layers interact, R bends it. All constants are in
nats of log KL: the scale of the metric drops out.

Letters: L layers, K levels, N samples, T targets, P = T + 2 + L K coefficients.
"""

import math
from dataclasses import dataclass

import numpy as np

from pruning.arrays import FloatArray
from pruning.levels import Configuration

MAX_SAMPLES = 512
"""Samples that a fit uses at most, those of largest weight."""

INTERCEPT_SD = 10.0
"""Of b_t: as good as free."""

COEFFICIENT_SD = 0.5
"""Of a_1 around 1 and a_2 around 0."""

LEVEL_SD = 0.5
"""Of R at any level: how far a layer may be from what its sensitivity says."""

STEP_SD = 0.15
"""Of the difference of R between neighbouring levels: its smoothness."""

NOISE_SD = 0.1
"""What an additive table cannot explain about one configuration."""

NEARNESS = 0.5
"""A sample this far above the best of its target counts 1/e."""

OTHER_TARGET_WEIGHT = 0.3
"""A sample of another target counts this much."""

LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, slots=True)
class ScoredConfiguration:
    """One sample as the surrogate sees it: which target it was scored for, and log KL (floored)."""

    target: int
    configuration: Configuration
    log_kl: float


@dataclass(frozen=True)
class Surrogate:
    """A fitted table and how unsure it is.

    Attributes:
        table: [L, K] posterior mean of what each level of each layer adds to log KL.
    """

    table: FloatArray
    _mean: FloatArray
    _cholesky: FloatArray
    _shapes: FloatArray

    def sample_table(self, rng: np.random.Generator) -> FloatArray:
        """[L, K] drawn from the posterior: Thompson sampling explores where the table is unsure."""
        noise = np.linalg.solve(self._cholesky.T, rng.standard_normal(len(self._mean)))
        return _table_of(self._mean + noise, self._shapes)


def fit_surrogate(
    sensitivity: FloatArray, samples: list[ScoredConfiguration], *, target: int, incumbent: Configuration
) -> Surrogate:
    """Fit to `samples` of all targets, for use at `target`, around `incumbent` [L].

    `sensitivity` [L, K] is the one-layer scan. `samples` may be empty: the table is then the scaled sensitivities.
    """
    L, K = sensitivity.shape
    shapes = _sensitivity_shapes(sensitivity, incumbent)
    targets = sorted({s.target for s in samples} | {target})
    best = _best_per_target(samples)
    weights = _weights(samples, best, target)
    kept = sorted(np.argsort(-weights, kind="stable")[:MAX_SAMPLES].tolist())
    T = len(targets)
    design = np.zeros((len(kept), T + 2 + L * K))
    layers = np.arange(L)
    for row, index in enumerate(kept):
        levels = np.asarray(samples[index].configuration) - 1
        design[row, targets.index(samples[index].target)] = 1.0
        design[row, T : T + 2] = shapes[:, layers, levels].sum(axis=1)
        design[row, T + 2 + layers * K + levels] = 1.0
    observed = np.array([samples[i].log_kl - best[samples[i].target] for i in kept])
    precision, mean = _coefficient_prior(T, L, K)
    weighted = design.T * (weights[kept] / NOISE_SD**2)
    posterior = precision + weighted @ design
    cholesky = np.linalg.cholesky(posterior).astype(np.float64)
    rhs = precision @ mean + weighted @ observed
    fitted = np.linalg.solve(cholesky.T, np.linalg.solve(cholesky, rhs)).astype(np.float64)
    return Surrogate(_table_of(fitted, shapes), fitted, cholesky, shapes)


def _sensitivity_shapes(sensitivity: FloatArray, incumbent: Configuration) -> FloatArray:
    """[2, L, K]: log(1 + s/S), and sqrt(s/S) over sqrt(L), which makes it of the same size."""
    positive = np.maximum(sensitivity, 0.0)
    L = len(positive)
    scale = float(positive[np.arange(L), np.asarray(incumbent) - 1].sum())
    relative = positive / scale if scale > 0.0 else np.zeros_like(positive)
    return np.stack([np.log1p(relative), np.sqrt(relative) / np.sqrt(L)])


def _best_per_target(samples: list[ScoredConfiguration]) -> dict[int, float]:
    """Least log KL seen, by target."""
    best: dict[int, float] = {}
    for sample in samples:
        best[sample.target] = min(sample.log_kl, best.get(sample.target, math.inf))
    return best


def _weights(samples: list[ScoredConfiguration], best: dict[int, float], target: int) -> FloatArray:
    """[N] in (0, 1]: exp(-nats above the best of the sample's target / NEARNESS), less for other targets."""
    own = np.array([1.0 if s.target == target else OTHER_TARGET_WEIGHT for s in samples])
    gaps = np.array([s.log_kl - best[s.target] for s in samples])
    weights: FloatArray = np.maximum(own * np.exp(-gaps / NEARNESS), LEAST_WEIGHT)
    return weights


def _coefficient_prior(T: int, L: int, K: int) -> tuple[FloatArray, FloatArray]:
    """Precision [P, P] and mean [P]: R is near 0 and smooth along levels, a_1 near 1."""
    difference = np.diff(np.eye(K), axis=0)
    row = np.eye(K) / LEVEL_SD**2 + difference.T @ difference / STEP_SD**2
    P = T + 2 + L * K
    precision = np.zeros((P, P))
    precision[:T, :T] = np.eye(T) / INTERCEPT_SD**2
    precision[T : T + 2, T : T + 2] = np.eye(2) / COEFFICIENT_SD**2
    precision[T + 2 :, T + 2 :] = np.kron(np.eye(L), row)
    mean = np.zeros(P)
    mean[T] = 1.0
    return precision, mean


def _table_of(coefficients: FloatArray, shapes: FloatArray) -> FloatArray:
    """[L, K] = a_1 F1 + a_2 F2 + R."""
    _, L, K = shapes.shape
    a = coefficients[-L * K - 2 : -L * K]
    table: FloatArray = np.tensordot(a, shapes, axes=1) + coefficients[-L * K :].reshape(L, K)
    return table
