"""The values: how good a complete configuration is, from what was measured.

    log KL(x) = log(sum_l s_l(x_l)) + f(x) (w . phi(x) + z(x)),   z ~ GP(0, s^2 exp(-sum_l |c_l(x_l) - c_l(x'_l)|))

for kept fractions x. s_l is the one-layer sensitivity curve: independent layers add up their KL. phi holds each layer's
and each pair of layers' share in the damage. What they leave unexplained is a Gaussian process whose covariance falls
with the distance between configurations, layer by layer; c_l runs faster where one-layer sensitivity changes much. So
the values lean on measurements near by, and doubt what is far from any. f fades to 0 within a level of the dense model,
where nothing is lost. Regression weights w and process are solved together (universal kriging, Cressie 1993, section
3.4).

Numpy throughout: no gradient is needed, and a request cannot wait for torch to be called a thousand times.
Letters: B batch, L decoder layers, K levels, J regression terms, N anchors (the samples that are kept).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy_model.encoding import KL_FLOOR_NATS, Encoding
from policy_model.left_out import LeftOut
from pruning.arrays import FloatArray, IntArray

Float32Array = NDArray[np.float32]

NUM_NEIGHBOURS = 8
"""Anchors that the posterior deviation is conditioned on. The nearest few screen the others off (Vecchia 1988); leaving
anchors out can only make the deviation larger."""

LEVEL_DISTANCE = 0.5
"""Distance between the two ends of a layer's range of kept fractions, in correlation lengths."""

SENSITIVITY_DISTANCE = 1.0
"""Distance between the largest and the least one-layer sensitivity of the model on a logarithmic scale."""

MAX_CHUNK = 2**22
"""Distances worked out at once."""


NEAR_FRONTIER = 0.5
"""Log KL above the frontier at which a sample's weight has fallen to 1/e: the values are asked about good plans."""

LEAST_WEIGHT = 0.1


def weights_of(gap: FloatArray) -> FloatArray:
    """How much samples count, in (0, 1], that are `gap` [N] above the frontier in log KL."""
    weights: FloatArray = LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * np.exp(-np.maximum(gap, 0.0) / NEAR_FRONTIER)
    return weights


@dataclass(frozen=True)
class Kernel:
    """What was chosen for one model.

    Attributes:
        scale: s, in log KL.
        length: multiplies all correlation lengths.
        noise: standard deviation over s of a sample of weight 1.
        slack: prior variance over s^2 of the regression's weights.
    """

    scale: float
    length: float
    noise: float
    slack: float


class Basis:
    """The parts of the values that need no sample but the one-layer scan: see `Values` for the letters."""

    def __init__(self, encoding: Encoding) -> None:
        self.knots = np.asarray(encoding.grid.widths, dtype=np.float64)
        self.knots /= self.knots[:, -1:]
        self.log_sensitivity = encoding.log_sensitivity
        self.shares = encoding.parameter_shares
        self.pairs = np.triu_indices(len(self.knots), k=1)
        self.coordinates = self._coordinates()

    @property
    def num_layers(self) -> int:
        return len(self.knots)

    def own_kl(self, fractions: FloatArray) -> FloatArray:
        """The KL in nats of pruning each layer alone, [B, L].

        Log-linear in the kept fraction between levels, linear from the last level below dense to 0; below level 1
        the slope is kept.
        """
        segment, weight = self._segments(fractions)  # the weight is below 0 under level 1
        layers, last = np.arange(self.num_layers), self.knots.shape[1] - 2
        low = self.log_sensitivity[layers, segment]
        high = self.log_sensitivity[layers, np.minimum(segment + 1, last)]
        inside = np.exp(np.minimum(low + (high - low) * weight, 12.0))
        own: FloatArray = np.where(segment == last, np.exp(low) * (1.0 - weight), inside)
        return own

    @staticmethod
    def base(own: FloatArray) -> FloatArray:
        """[B] log KL if the layers' own KL [B, L] simply added up."""
        base: FloatArray = np.log(own.sum(axis=1) + KL_FLOOR_NATS)
        return base

    def fade(self, fractions: FloatArray) -> FloatArray:
        """[B] 1, and less only within one level of one layer from the dense model."""
        fade: FloatArray = np.minimum((1.0 - fractions).sum(axis=1) * self.knots.shape[1], 1.0)
        return fade

    def terms(self, fractions: FloatArray, own: FloatArray) -> FloatArray:
        """phi [B, J]: what one layer, two neighbours or any two layers contribute beyond adding up.

        In removed fractions p and in parts r of the summed own KL. The factors are prior scales: the penalty is the
        same for all weights, and effects that many layers share are the likelier ones.
        """
        p = 1.0 - fractions
        total = own.sum(axis=1, keepdims=True) + KL_FLOOR_NATS
        r = own / total
        q = np.sqrt(r)
        mean, log_total = p.mean(axis=1, keepdims=True), 0.2 * np.log(total)
        i, j = self.pairs
        pair_p, pair_q = p[:, i] * p[:, j], q[:, i] * q[:, j]
        whole = [np.ones_like(mean), mean, mean**2, log_total, log_total**2, log_total * mean]
        layerwise = [0.3 * p, 0.3 * p**2, 0.3 * r, 0.3 * q]
        neighbours = [0.5 * q[:, :-1] * q[:, 1:], 0.5 * p[:, :-1] * p[:, 1:]]
        return np.concatenate([*whole, *layerwise, *neighbours, 0.3 * pair_p, 0.5 * pair_p * pair_q], axis=1)

    def places(self, fractions: FloatArray) -> Float32Array:
        """c [B, L]: where the process sees `fractions` [B, L], linear between levels and beyond them."""
        segment, weight = self._segments(fractions)
        layers = np.arange(self.num_layers)
        left, right = self.coordinates[layers, segment], self.coordinates[layers, segment + 1]
        places: Float32Array = (left + (right - left) * weight).astype(np.float32)
        return places

    def _segments(self, fractions: FloatArray) -> tuple[IntArray, FloatArray]:
        """[B, L] twice: the level below `fractions` [B, L] counted from 0, and how far on they are to the next one."""
        layers = np.arange(self.num_layers)
        below = (fractions[:, :, None] > self.knots).sum(axis=2)
        segment = np.clip(below - 1, 0, self.knots.shape[1] - 2)
        left, right = self.knots[layers, segment], self.knots[layers, segment + 1]
        return segment, (fractions - left) / (right - left)

    def _coordinates(self) -> FloatArray:
        """c [L, K] at the levels: the length walked from level 1, whatever direction sensitivity takes."""
        # The dense level has no sensitivity: it lies as far below the last one as that below the one before.
        logs = np.concatenate([self.log_sensitivity, self.log_sensitivity[:, -1:]], axis=1)
        if logs.shape[1] > 2:
            logs[:, -1] += np.minimum(logs[:, -2] - logs[:, -3], 0.0)
        spread = float(logs.max() - logs.min()) or 1.0
        steps = SENSITIVITY_DISTANCE * np.abs(np.diff(logs, axis=1)) / spread
        steps += LEVEL_DISTANCE * np.diff(self.knots, axis=1)
        return np.concatenate([np.zeros((self.num_layers, 1)), steps.cumsum(axis=1)], axis=1)


def distances(a: Float32Array, b: Float32Array) -> Float32Array:
    """[A, B] sums over layers of the distances between places [A, L] and [B, L]."""
    total = np.zeros((len(a), len(b)), dtype=np.float32)
    for x, y in zip(a.T, b.T, strict=True):
        difference = np.subtract.outer(x, y)
        total += np.abs(difference, out=difference)
    return total


class Values:
    """Immutable, so threads may share it. See the module's docstring; `value_training.fit_values` makes it.

    Args:
        basis: of the model.
        kernel: the process.
        tensors: by the names of `TENSORS`: `places` [N, L] of the anchors, `fades` [N], `weights` [N] in (0, 1],
            `alpha` [N] of the process, `readout` [J] of the regression, `frontier` [101] best known log KL at
            retentions 0.00, 0.01, .. 1.00.
    """

    TENSORS = ("places", "fades", "weights", "alpha", "readout", "frontier")

    def __init__(self, basis: Basis, kernel: Kernel, tensors: Mapping[str, Float32Array]) -> None:
        self.basis, self.kernel = basis, kernel
        self.places, self.fades, self.weights = tensors["places"], tensors["fades"], tensors["weights"]
        self.faded_alpha: Float32Array = tensors["fades"] * tensors["alpha"]
        self.readout = tensors["readout"].astype(np.float64)
        self._frontier = tensors["frontier"].astype(np.float64)
        self._tensors = {name: tensors[name] for name in self.TENSORS}

    @property
    def tensors(self) -> dict[str, Float32Array]:
        """What the constructor needs beside the basis and the kernel."""
        return dict(self._tensors)

    def __call__(self, fractions: FloatArray) -> FloatArray:
        """Log KL in nats [B] of kept fractions [B, L]."""
        places = self.basis.places(fractions)
        parts = np.array_split(places, self._num_chunks(len(places)))
        process = [self._correlation(distances(part, self.places)) @ self.faded_alpha for part in parts]
        return self._mean(fractions, self.basis.own_kl(fractions), np.concatenate(process))

    def judge(self, fractions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Log KL [B] in nats, and its posterior standard deviation [B], a measurement's own noise included."""
        own, places = self.basis.own_kl(fractions), self.basis.places(fractions)
        processes, variances = [], []
        for part in np.array_split(places, self._num_chunks(len(places))):
            apart = distances(part, self.places)
            variances.append(self.conditional_variance(apart))
            processes.append(self._correlation(apart) @ self.faded_alpha)
        mean = self._mean(fractions, own, np.concatenate(processes))
        return mean, self.deviation(fractions, mean, np.concatenate(variances))

    def left_out(self, fractions: FloatArray, errors: FloatArray, log_kl: FloatArray, groups: IntArray) -> LeftOut:
        """`errors` [N] that the anchors, each without those of its group [N], were measured above their prediction,
        with the standard deviations [N] that `judge` would then have given.

        `fractions` [N, L] are the anchors'.
        """
        parts = []
        for index in np.array_split(np.arange(len(self.places)), self._num_chunks(len(self.places))):
            apart = distances(self.places[index], self.places)
            apart[groups[index, None] == groups] = np.inf
            parts.append(self.conditional_variance(apart))
        return LeftOut(errors, self.deviation(fractions, log_kl - errors, np.concatenate(parts)))

    def deviation(self, fractions: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
        """[B] of log KL, for `mean` [B] and the process's `variance` [B] at `fractions` [B, L].

        What lies far above the frontier was fitted loosely, and is the less certain.
        """
        known = np.interp(fractions @ self.basis.shares, np.linspace(0.0, 1.0, len(self._frontier)), self._frontier)
        noise = self.kernel.noise**2 / weights_of(mean - known)
        deviation: FloatArray = self.kernel.scale * self.basis.fade(fractions) * np.sqrt(variance + noise)
        return deviation

    def conditional_variance(self, apart: Float32Array) -> FloatArray:
        """[B] variance of the process over s^2, given the nearest anchors at distances `apart` [B, N]."""
        m = min(NUM_NEIGHBOURS, len(self.places))
        nearest = np.argpartition(apart, m - 1, axis=1)[:, :m]
        towards = np.exp(-np.take_along_axis(apart, nearest, axis=1) / self.kernel.length).astype(np.float64)
        near = self.places[nearest]  # [B, m, L]
        between = np.abs(near[:, :, None] - near[:, None]).sum(axis=3) / self.kernel.length
        noise = self.kernel.noise**2 / self.weights[nearest]
        matrix = np.exp(-between.astype(np.float64)) + noise[:, :, None] * np.eye(m)
        explained = (towards * np.linalg.solve(matrix, towards[:, :, None])[:, :, 0]).sum(axis=1)
        variance: FloatArray = np.maximum(1.0 - explained, 0.0)
        return variance

    def _mean(self, fractions: FloatArray, own: FloatArray, process: FloatArray | Float32Array) -> FloatArray:
        """Log KL [B], of what layers lose on their own [B, L] and of the process [B]."""
        regression = self.basis.terms(fractions, own) @ self.readout
        mean: FloatArray = self.basis.base(own) + self.basis.fade(fractions) * (regression + process)
        return mean

    def _correlation(self, apart: Float32Array) -> Float32Array:
        """[B, N] of the process with the anchors, written over their distances `apart` [B, N]."""
        apart *= np.float32(-1.0 / self.kernel.length)
        return np.exp(apart, out=apart)

    def _num_chunks(self, rows: int) -> int:
        return max(1, -(-rows * max(len(self.places), 1) // MAX_CHUNK))
