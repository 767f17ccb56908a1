"""What the values see in a configuration without any sample of it but the one-layer scan.

The terms of the regression, their sum with given weights, and the coordinates of the process; see `values.values`
for the formula and the letters.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray, IntArray
from values.encoding import Encoding
from values.kl_floor import KL_FLOOR_NATS

Float32Array = NDArray[np.float32]

LEVEL_DISTANCE = 0.5
"""Distance between the two ends of a layer's range of kept fractions, in correlation lengths."""

SENSITIVITY_DISTANCE = 1.0
"""Distance between the largest and the least one-layer sensitivity of the model on a logarithmic scale."""


class Basis:
    """Own KL, terms and coordinates of the kept fractions of one model."""

    def __init__(self, encoding: Encoding) -> None:
        self.knots = encoding.fractions
        self.counts = encoding.space.counts
        self.log_sensitivity = encoding.log_sensitivity
        self.shares = encoding.parameter_shares
        self.pairs = np.triu_indices(len(self.knots), k=1)
        self.coordinates = self._coordinates()

    @property
    def num_decisions(self) -> int:
        return len(self.knots)

    def own_kl(self, fractions: FloatArray) -> FloatArray:
        """The KL in nats of pruning each layer alone, [B, L].

        Log-linear in the kept fraction between levels, linear from the last level below dense to 0; below level 1
        the slope is kept.
        """
        segment, weight = self._segments(fractions)  # the weight is below 0 under level 1
        decisions, last = np.arange(self.num_decisions), self.counts - 2
        low = self.log_sensitivity[decisions, segment]
        high = self.log_sensitivity[decisions, np.minimum(segment + 1, last)]
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
        fade: FloatArray = np.minimum((1.0 - fractions) @ self.counts, 1.0)
        return fade

    def terms(self, fractions: FloatArray, own: FloatArray) -> FloatArray:
        """phi [B, J], as fits need them: what one layer, two neighbours or any two layers contribute beyond adding up.

        In removed fractions p and in parts r of the summed own KL. The factors are prior scales: the penalty is the
        same for all weights, and effects that many layers share are the likelier ones.
        """
        p = 1.0 - fractions
        total = own.sum(axis=1, keepdims=True) + KL_FLOOR_NATS
        r = own / total
        q = np.sqrt(r)
        i, j = self.pairs
        pair_p, pair_q = p[:, i] * p[:, j], q[:, i] * q[:, j]
        return np.concatenate([*_single_terms(p, r, total), PAIR_P * pair_p, PAIR_PQ * pair_p * pair_q], axis=1)

    def places(self, fractions: FloatArray) -> Float32Array:
        """c [B, L]: where the process sees `fractions` [B, L], linear between levels and beyond them."""
        segment, weight = self._segments(fractions)
        decisions = np.arange(self.num_decisions)
        left, right = self.coordinates[decisions, segment], self.coordinates[decisions, segment + 1]
        places: Float32Array = (left + (right - left) * weight).astype(np.float32)
        return places

    def fractions_at(self, places: Float32Array) -> FloatArray:
        """[B, L] the kept fractions at `places` [B, L]: the inverse of `places`, to float32's rounding."""
        # Rounded as places are: what lies on a knot is read back as it was.
        rounded = self.coordinates.astype(np.float32).astype(np.float64)
        rows = zip(rounded, self.knots, self.counts, places.T.astype(np.float64), strict=True)
        found = []
        for coordinates, knots, count, at in rows:
            segment = np.clip(np.searchsorted(coordinates[:count], at, side="right") - 1, 0, count - 2)
            left, right = coordinates[segment], coordinates[segment + 1]
            on = knots[segment] + (knots[segment + 1] - knots[segment]) * (at - left) / (right - left)
            found.append(np.minimum(on, knots[count - 1]))  # nothing keeps more than all, not even by rounding
        fractions: FloatArray = np.stack(found, axis=1)
        return fractions

    def _segments(self, fractions: FloatArray) -> tuple[IntArray, FloatArray]:
        """[B, L] twice: the level below `fractions` [B, L] counted from 0, and how far on they are to the next one."""
        decisions = np.arange(self.num_decisions)
        below = (fractions[:, :, None] > self.knots).sum(axis=2)
        segment = np.clip(below - 1, 0, self.counts - 2)
        left, right = self.knots[decisions, segment], self.knots[decisions, segment + 1]
        return segment, (fractions - left) / (right - left)

    def _coordinates(self) -> FloatArray:
        """c [L, K] at the levels: the length walked from level 1, whatever direction sensitivity takes."""
        # The dense level has no sensitivity: it lies as far below the last one as that below the one before.
        logs = np.concatenate([self.log_sensitivity, self.log_sensitivity[:, -1:]], axis=1)
        for row, count in zip(logs, self.counts, strict=True):
            if count > 2:
                row[count - 1 :] = row[count - 2] + min(row[count - 2] - row[count - 3], 0.0)
        spread = float(logs.max() - logs.min()) or 1.0
        steps = SENSITIVITY_DISTANCE * np.abs(np.diff(logs, axis=1)) / spread
        steps += LEVEL_DISTANCE * np.diff(self.knots, axis=1)
        return np.concatenate([np.zeros((self.num_decisions, 1)), steps.cumsum(axis=1)], axis=1)


PAIR_P, PAIR_PQ = 0.3, 0.5
"""Prior scales of what any two decisions do together."""


def _single_terms(p: FloatArray, r: FloatArray, total: FloatArray) -> list[FloatArray]:
    """Of `Basis.terms`, those that come before the pairs, each [B, some]."""
    q = np.sqrt(r)
    mean, log_total = p.mean(axis=1, keepdims=True), 0.2 * np.log(total)
    whole = [np.ones_like(mean), mean, mean**2, log_total, log_total**2, log_total * mean]
    layerwise = [0.3 * p, 0.3 * p**2, 0.3 * r, 0.3 * q]
    return [*whole, *layerwise, 0.5 * q[:, :-1] * q[:, 1:], 0.5 * p[:, :-1] * p[:, 1:]]


NUM_WHOLE = 6
"""Terms of `Basis.terms` that belong to no decision."""


class Regression:
    """w . phi(x) [B] without writing phi out, whose pairs are a thousand numbers at 32 decisions.

    With x = (p, q, p q), of every decision: a quadratic form x^T A x + b^T x, and what belongs to no decision.

    Args:
        readout: w [J], in the order of `Basis.terms`.
        num_decisions: L.
    """

    def __init__(self, readout: FloatArray, num_decisions: int) -> None:
        L = num_decisions
        layers, neighbours = np.arange(L), np.arange(L - 1)
        pairs = np.triu_indices(L, k=1)
        sizes = [NUM_WHOLE, L, L, L, L, L - 1, L - 1, len(pairs[0]), len(pairs[0])]
        whole, p, p_squared, r, q, next_q, next_p, pair_p, pair_pq = np.split(readout, np.cumsum(sizes)[:-1])
        of_p, of_q, of_pq = np.zeros((3, L, L))
        of_p[layers, layers], of_q[layers, layers] = 0.3 * p_squared, 0.3 * r  # r is q^2
        of_p[neighbours, neighbours + 1], of_q[neighbours, neighbours + 1] = 0.5 * next_p, 0.5 * next_q
        of_p[pairs] += PAIR_P * pair_p
        of_pq[pairs] = PAIR_PQ * pair_pq
        self._whole = whole
        self._linear = np.concatenate([0.3 * p, 0.3 * q, np.zeros(L)])
        self._quadratic = np.zeros((3 * L, 3 * L))
        for place, block in enumerate((of_p, of_q, of_pq)):
            rows = slice(place * L, (place + 1) * L)
            self._quadratic[rows, rows] = block
        self._of_p, self._of_q, self._of_pq = (_Form.of(block) for block in (of_p, of_q, of_pq))

    def __call__(self, fractions: FloatArray, own: FloatArray) -> FloatArray:
        """[B] of kept fractions [B, L] and what layers lose on their own [B, L]: `Basis.terms` times w."""
        p = 1.0 - fractions
        total = own.sum(axis=1) + KL_FLOOR_NATS
        q = np.sqrt(own / total[:, None])
        mean, log_total = p.mean(axis=1), 0.2 * np.log(total)
        x = np.concatenate([p, q, p * q], axis=1)
        found: FloatArray = np.einsum("bi,bi->b", x @ self._quadratic + self._linear, x)
        found += self._of_whole(mean, log_total)
        return found

    def replacing(
        self, fractions: FloatArray, own: FloatArray, instead: FloatArray, own_instead: FloatArray
    ) -> FloatArray:
        """[B, L] the same of `fractions` [B or 1, L] in which decision l alone keeps `instead` [B, L], and loses
        `own_instead` [B, L] on its own rather than `own` [B or 1, L].

        A change of one entry changes a quadratic form by one row of it: all L of them take no longer than one value.
        """
        p, root, L = 1.0 - fractions, np.sqrt(own), fractions.shape[1]
        more_p, more_root = fractions - instead, np.sqrt(own_instead) - root
        total = own.sum(axis=1, keepdims=True) + KL_FLOOR_NATS
        total = np.maximum(total - own + own_instead, KL_FLOOR_NATS)
        # q is the root of own over the root of the total, which every change moves: both of its forms scale with it.
        of_q = self._of_q.replacing(root, more_root)
        of_q += self._of_pq.replacing(p * root, (p + more_p) * (root + more_root) - p * root)
        linear = self._linear[L : 2 * L]
        of_q /= total
        of_q += (root @ linear[:, None] + more_root * linear) / np.sqrt(total)
        mean, log_total = p.mean(axis=1, keepdims=True) + more_p / L, 0.2 * np.log(total)
        linear = self._linear[:L]
        found: FloatArray = self._of_p.replacing(p, more_p) + (p @ linear[:, None] + more_p * linear) + of_q
        found += self._of_whole(mean, log_total)
        return found

    def _of_whole(self, mean: FloatArray, log_total: FloatArray) -> FloatArray:
        """What belongs to no decision."""
        w = self._whole
        found: FloatArray = w[0] + mean * (w[1] + w[2] * mean + w[5] * log_total)
        found += log_total * (w[3] + w[4] * log_total)
        return found


@dataclass(frozen=True, eq=False)
class PriorOfTerms:
    """What `Basis.terms` of two configurations multiply to, without writing out the pairs, which are sums of squares.

    Attributes:
        single: [B, M] the terms of no pair.
        p, pq: [B, L] whose products the pairs are.
    """

    single: FloatArray
    p: FloatArray
    pq: FloatArray

    @classmethod
    def of(cls, fractions: FloatArray, own: FloatArray) -> "PriorOfTerms":
        """Of kept `fractions` [B, L] and what decisions lose on their `own` [B, L]."""
        p = 1.0 - fractions
        total = own.sum(axis=1, keepdims=True) + KL_FLOOR_NATS
        return cls(np.concatenate(_single_terms(p, own / total, total), axis=1), p, p * np.sqrt(own / total))

    def covariance(self, other: "PriorOfTerms") -> FloatArray:
        """[B, D] terms [B, J] times those of the `other` [D, J]."""
        # (sum_i a_i b_i)^2 is twice the pairs and the squares, which the last product takes off again.
        found: FloatArray = np.concatenate([self.single, self.p**2, self.pq**2], axis=1) @ other._less_squares.T
        for factor, a, b in ((PAIR_P, self.p, other.p), (PAIR_PQ, self.pq, other.pq)):
            pairs = a @ b.T
            pairs *= pairs
            pairs *= 0.5 * factor**2
            found += pairs
        return found

    @cached_property
    def _less_squares(self) -> FloatArray:
        """[B, M + 2 L] of the side that is asked again and again."""
        squares = [-0.5 * PAIR_P**2 * self.p**2, -0.5 * PAIR_PQ**2 * self.pq**2]
        return np.concatenate([self.single, *squares], axis=1)

    @property
    def variance(self) -> FloatArray:
        """[B] the terms' sums of squares."""
        found: FloatArray = (self.single**2).sum(axis=1)
        for factor, a in ((PAIR_P, self.p), (PAIR_PQ, self.pq)):
            found += 0.5 * factor**2 * ((a**2).sum(axis=1) ** 2 - (a**4).sum(axis=1))
        return found


@dataclass(frozen=True, eq=False)
class _Form:
    """x^T A x, by A + A^T [L, L] and its diagonal [L]."""

    both: FloatArray
    diagonal: FloatArray

    @classmethod
    def of(cls, matrix: FloatArray) -> "_Form":
        return cls(matrix + matrix.T, matrix.diagonal().copy())

    def replacing(self, x: FloatArray, more: FloatArray) -> FloatArray:
        """[B, L] of x [B or 1, L] with `more` [B, L] added to one entry each."""
        slope = x @ self.both
        found: FloatArray = 0.5 * (slope * x).sum(axis=1, keepdims=True)
        return found + more * (slope + more * self.diagonal)
