"""How sure the values are of a configuration: the variance of universal kriging, what its regression does not know
included (Cressie 1993, section 3.4; with a prior of its weights, Rasmussen and Williams 2006, section 2.7).

A regression of hundreds of weights on as many samples says anything where no sample tells it. That does not show in the
distance from samples: on the way between two of them it is right, and one exchange aside it may be off by half a nat of
log KL (docs/predictor.md, "Far from what was measured").

Letters: B batch, L decisions, N anchors of the values, D of them that are asked here.
"""

import numpy as np

from pruning.arrays import FloatArray, IntArray
from values.basis import Basis, Float32Array, PriorOfTerms
from values.kernel import Kernel

MOST_ASKED = 512
"""Anchors that the variance is conditioned on: a request takes their square a configuration. Leaving anchors out can
only make the variance larger, and where something was measured it should not: so those are asked that keep about as
much as what is judged."""

BAND = 0.1
"""Of retention: anchors so near to it are asked before others, those nearest to the frontier first."""


class Posterior:
    """Immutable. `asked` [D] are the anchors that it is conditioned on.

    Args:
        basis: of the model.
        kernel: of the values.
        places, fades, weights: of the anchors [N, L], [N], [N], as `Values` has them.
        retention: about what part of the parameters that may go is kept by what will be judged.
    """

    def __init__(
        self,
        basis: Basis,
        kernel: Kernel,
        places: Float32Array,
        fades: Float32Array,
        weights: Float32Array,
        retention: float,
    ) -> None:
        self._basis, self._kernel = basis, kernel
        fractions = basis.fractions_at(places)
        apart_from = np.maximum(np.abs(fractions @ basis.shares - retention) - BAND, 0.0)
        self.asked: IntArray = np.sort(np.lexsort((-weights, apart_from))[:MOST_ASKED])
        fractions = fractions[self.asked]
        self._fades: FloatArray = fades[self.asked].astype(np.float64)
        self._terms = PriorOfTerms.of(fractions, basis.own_kl(fractions))
        apart = np.stack([np.abs(places[self.asked] - place).sum(axis=1) for place in places[self.asked]])
        covariance = self._covariance(apart, self._terms, self._fades)
        covariance += np.diag(kernel.noise**2 / weights[self.asked].astype(np.float64))
        self._inverse = np.linalg.inv(covariance).astype(np.float64)

    def deviation(self, fractions: FloatArray, own: FloatArray, apart: Float32Array) -> FloatArray:
        """[B] standard deviation of log KL in nats, the noise of a measurement at the frontier included, of kept
        `fractions` [B, L] with the `own` KL [B, L] of each decision, at distances `apart` [B, N] from the anchors."""
        terms, fades = PriorOfTerms.of(fractions, own), self._basis.fade(fractions)
        towards = self._covariance(apart[:, self.asked], terms, fades)
        before = fades**2 * (1.0 + self._kernel.slack * terms.variance)
        explained = ((towards @ self._inverse) * towards).sum(axis=1)
        noise = (self._kernel.noise * fades) ** 2
        variance: FloatArray = np.maximum(before - explained, 0.0) + noise
        return self._kernel.scale * np.sqrt(variance)

    def _covariance(self, apart: Float32Array, terms: PriorOfTerms, fades: FloatArray) -> FloatArray:
        """[B, D] over s^2."""
        process = np.exp(-apart.astype(np.float64) / self._kernel.length)
        covariance: FloatArray = process + self._kernel.slack * terms.covariance(self._terms)
        covariance *= np.outer(fades, self._fades)
        return covariance
