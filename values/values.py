"""The values: how good a complete configuration is, from what was measured.

    log KL(x) = log(sum_l s_l(x_l)) + f(x) (w . phi(x) + z(x)),   z ~ GP(0, s^2 exp(-sum_l |c_l(x_l) - c_l(x'_l)|))

for kept fractions x. s_l is the one-layer sensitivity curve: independent layers add up their KL. phi holds each layer's
and each pair of layers' share in the damage. What they leave unexplained is a Gaussian process whose covariance falls
with the distance between configurations, layer by layer; c_l runs faster where one-layer sensitivity changes much. So
the values lean on measurements near by, and doubt what is far from any. f fades to 0 within a level of the dense model,
where nothing is lost. Regression weights w and process are solved together (universal kriging, Cressie 1993, section
3.4).

Numpy throughout: no gradient is needed, and a request cannot wait for torch to be called a thousand times.
Letters: B batch, L decisions (one a layer, in a space of FFN widths), K options, J regression terms, N anchors (the
samples that are kept).
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from pruning.arrays import FloatArray, IntArray
from values.basis import Basis, Float32Array, Regression
from values.held_out import HeldOutResiduals
from values.kernel import Kernel
from values.posterior import MOST_ASKED, Posterior

NUM_NEIGHBOURS = 8
"""Anchors that the posterior deviation is conditioned on. The nearest few screen the others off (Vecchia 1988); leaving
anchors out can only make the deviation larger."""

MAX_CHUNK = 2**22
"""Distances worked out at once."""

RETENTION_STEP = 0.05
"""Between the retentions that have a posterior of their own."""


NEAR_FRONTIER = 0.5
"""Log KL above the frontier at which a sample's weight has fallen to 1/e: the values are asked about good plans."""

LEAST_WEIGHT = 0.1


def weights_of(gap: FloatArray) -> FloatArray:
    """How much samples count, in (0, 1], that are `gap` [N] above the frontier in log KL."""
    weights: FloatArray = LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * np.exp(-np.maximum(gap, 0.0) / NEAR_FRONTIER)
    return weights


def distances(a: Float32Array, b: Float32Array) -> Float32Array:
    """[A, B] sums over layers of the distances between places [A, L] and [B, L]."""
    if len(a) == 1:  # as a request asks: one sum takes less time than to add up layer by layer
        apart: Float32Array = np.abs(a.T - b.T).sum(axis=0, keepdims=True)
        return apart
    total = np.zeros((len(a), len(b)), dtype=np.float32)
    for x, y in zip(a.T, b.T, strict=True):
        difference = np.subtract.outer(x, y)
        total += np.abs(difference, out=difference)
    return total


def _distance(a: Float32Array, b: Float32Array) -> Float32Array:
    """[...] between places [..., L] and [..., L]."""
    apart: Float32Array = np.abs(a - b).sum(axis=-1)
    return apart


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
        self.regression = Regression(tensors["readout"].astype(np.float64), basis.num_decisions)
        self._frontier = tensors["frontier"].astype(np.float64)
        self._frontier_at = np.linspace(0.0, 1.0, len(self._frontier))
        self._tensors = {name: tensors[name] for name in self.TENSORS}
        self._posteriors: dict[int, Posterior] = {}

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

    def held_out(
        self, fractions: FloatArray, errors: FloatArray, log_kl: FloatArray, groups: IntArray
    ) -> HeldOutResiduals:
        """The anchors' residuals `errors` [N], each of a fit without its group [N], with predicted deviations [N].

        `fractions` [N, L] and measured `log_kl` [N] are the anchors'.
        """
        parts = []
        for index in np.array_split(np.arange(len(self.places)), self._num_chunks(len(self.places))):
            apart = distances(self.places[index], self.places)
            apart[groups[index, None] == groups] = np.inf
            parts.append(self.conditional_variance(apart))
        return HeldOutResiduals(errors, self.deviation(fractions, log_kl - errors, np.concatenate(parts)))

    def deviation(self, fractions: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
        """[B] of log KL, for `mean` [B] and the process's `variance` [B] at `fractions` [B, L].

        What lies far above the frontier was fitted loosely, and is the less certain.
        """
        known = np.interp(fractions @ self.basis.shares, self._frontier_at, self._frontier)
        noise = self.kernel.noise**2 / weights_of(mean - known)
        deviation: FloatArray = self.kernel.scale * self.basis.fade(fractions) * np.sqrt(variance + noise)
        return deviation

    @cached_property
    def between_anchors(self) -> Float32Array:
        """[N, N] distances between the anchors: some megabytes, for choices by the million."""
        return np.stack([_distance(self.places, place) for place in self.places])

    def posterior_deviation(self, fractions: FloatArray, own: FloatArray, apart: Float32Array) -> FloatArray:
        """[B] of log KL in nats, what the regression does not know included: dearer than `deviation`.

        Of kept `fractions` [B, L], each decision's `own` KL [B, L], at distances `apart` [B, N] from the anchors.
        """
        bands = np.zeros(len(fractions), dtype=np.int64)
        if len(self.places) > MOST_ASKED:  # each by the anchors of about its own retention
            bands = np.rint((fractions @ self.basis.shares).clip(0.0, 1.0) / RETENTION_STEP).astype(np.int64)
        found = np.empty(len(fractions))
        for band in np.unique(bands).tolist():
            rows = bands == band
            found[rows] = self._posterior(band).deviation(fractions[rows], own[rows], apart[rows])
        return found

    def _posterior(self, band: int) -> Posterior:
        """Made when it is first asked for; twice where threads meet, which is the same."""
        found = self._posteriors.get(band)
        if found is None:
            anchors = (self.places, self.fades, self.weights)
            found = self._posteriors[band] = Posterior(self.basis, self.kernel, *anchors, band * RETENTION_STEP)
        return found

    def conditional_variance(self, apart: Float32Array, between_anchors: Float32Array | None = None) -> FloatArray:
        """[B] variance over s^2, given the nearest anchors at distances `apart` [B, N]; `between_anchors` [N, N], if
        they are known.

        That of the process, and what the regression adds, which has more weights than most searches have samples: away
        from all of them it says anything. How fast it goes astray is measured (`Kernel.drift`).
        """
        m = min(NUM_NEIGHBOURS, len(self.places))
        nearest = np.argpartition(apart, m - 1, axis=1)[:, :m]
        towards = np.exp(-np.take_along_axis(apart, nearest, axis=1) / self.kernel.length).astype(np.float64)
        if between_anchors is None:
            near = self.places[nearest]  # [B, m, L]
            between = _distance(near[:, :, None], near[:, None])
        else:
            between = between_anchors[nearest[:, :, None], nearest[:, None]]
        noise = self.kernel.noise**2 / self.weights[nearest]
        matrix = np.exp(-(between / self.kernel.length).astype(np.float64)) + noise[:, :, None] * np.eye(m)
        explained = (towards * np.linalg.solve(matrix, towards[:, :, None])[:, :, 0]).sum(axis=1)
        variance: FloatArray = np.maximum(1.0 - explained, 0.0) + self._astray(apart) ** 2
        return variance

    def astray(self, fractions: FloatArray, apart: Float32Array) -> FloatArray:
        """[B] standard deviation of log KL that comes of the distances `apart` [B, N] of `fractions` [B, L] from the
        anchors alone."""
        astray: FloatArray = self.kernel.scale * self.basis.fade(fractions) * self._astray(apart)
        return astray

    def _astray(self, apart: Float32Array) -> FloatArray:
        """[B] over s."""
        nearest = np.minimum.reduce(apart, axis=1).astype(np.float64)
        nearest[~np.isfinite(nearest)] = 0.0  # all anchors are left out: there is nothing to be far from
        astray: FloatArray = self.kernel.drift * nearest
        return astray

    def _mean(self, fractions: FloatArray, own: FloatArray, process: FloatArray | Float32Array) -> FloatArray:
        """Log KL [B], of what layers lose on their own [B, L] and of the process [B]."""
        regression = self.regression(fractions, own)
        mean: FloatArray = self.basis.base(own) + self.basis.fade(fractions) * (regression + process)
        return mean

    def _correlation(self, apart: Float32Array) -> Float32Array:
        """[B, N] of the process with the anchors, written over their distances `apart` [B, N]."""
        apart *= np.float32(-1.0 / self.kernel.length)
        return np.exp(apart, out=apart)

    def _num_chunks(self, rows: int) -> int:
        return max(1, -(-rows * max(len(self.places), 1) // MAX_CHUNK))
