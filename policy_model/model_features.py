"""What the policy is told of the decisions and options of a model, whatever their number.

Letters: N decisions, K options, F features of a decision, S features of an option.
"""

from dataclasses import dataclass

import numpy as np

from pruning.anatomy.architecture import Sublayer
from pruning.arrays import FloatArray
from values.decisions import kind_of
from values.encoding import Encoding

NUM_SHARED = 5
"""Columns of `Encoding.features` that do not depend on the options: depth, shares, importance."""

SENSITIVITY_AT = np.arange(1, 8) / 8
"""Kept fractions at which a decision's sensitivity is told, whatever its options."""

PERIODS = (4.0, 16.0, 64.0, 256.0)
"""Decisions in a full turn of the sinusoids that say which decision it is."""

TURNS = (0.5, 1.0, 2.0)
"""Full turns over the whole model, likewise."""

NUM_KINDS = 2
"""Flags: an attention, and a whole layer; neither is an FFN."""

NUM_DECISION_FEATURES = NUM_SHARED + len(SENSITIVITY_AT) + 1 + 2 * (len(PERIODS) + len(TURNS)) + NUM_KINDS
NUM_OPTION_FEATURES = 6

FAR = 3.0
"""Standard deviations that a sensitivity is told to be away from the mean, at most."""


@dataclass(frozen=True, eq=False)
class ModelFeatures:
    """`decisions` [N, F], `options` [N, K, S], and the KL `own` [N, K] of each option alone, in nats.

    Of a decision: depth and shares, importance, sensitivities at fixed kept fractions, the part of them that was
    measured, sinusoids of its place, and its kind. Of an option: its kept fraction, whether it is the dense one, the KL
    of this decision alone (its logarithm, and its root), and how fast that falls to the next option above and below.
    """

    decisions: FloatArray
    options: FloatArray
    own: FloatArray

    @classmethod
    def of(cls, encoding: Encoding, fractions: FloatArray, own: FloatArray) -> "ModelFeatures":
        """`fractions` [N, K] that the options keep, and the KL `own` [N, K] of each alone, in nats."""
        mean, spread = encoding.log_sensitivity.mean(), encoding.log_sensitivity.std() + 1e-3

        def standardised(kl: FloatArray) -> FloatArray:
            found: FloatArray = np.clip((np.log(np.maximum(kl, 1e-12)) - mean) / spread, -FAR, FAR)
            return found

        steps = np.diff(fractions, axis=1)
        falls = standardised(np.maximum(-np.diff(own, axis=1), 0.0) / np.maximum(steps, 1e-6))
        falls[steps <= 0.0] = 0.0  # options that are brought to one width
        edge = np.full((len(own), 1), FAR)
        columns = [
            fractions,
            (fractions >= 1.0).astype(np.float64),
            standardised(own),
            np.minimum(np.sqrt(own / np.exp(mean)), FAR),
            np.concatenate([falls, -edge], axis=1),
            np.concatenate([edge, falls], axis=1),
        ]
        return cls(decision_features(encoding), np.stack(columns, axis=2), own)


def decision_features(encoding: Encoding) -> FloatArray:
    """[N, F], see `ModelFeatures`."""
    N, K = encoding.units.shape
    last = encoding.space.top
    standardised = encoding.features[:, NUM_SHARED : NUM_SHARED + K - 1]
    flags = encoding.features[:, NUM_SHARED + K - 1 :]
    rows = zip(encoding.fractions, standardised, last, strict=True)
    sensitivity = [np.interp(SENSITIVITY_AT, at[:k], row[:k]) for at, row, k in rows]
    measured = np.array([[row[:k].mean()] for row, k in zip(flags, last, strict=True)])
    kinds = [kind_of(decision) for decision in encoding.space.decisions]
    of_kind = [[float(kind == (Sublayer.ATTENTION,)), float(len(kind) > 1)] for kind in kinds]
    place, depth = np.arange(N)[:, None], np.arange(N)[:, None] / max(N - 1, 1)
    angles = 2.0 * np.pi * np.concatenate([place / np.array(PERIODS), depth * np.array(TURNS)], axis=1)
    shared = encoding.features[:, :NUM_SHARED]
    told = (shared, np.stack(sensitivity), measured, np.sin(angles), np.cos(angles), np.array(of_kind))
    return np.concatenate(told, axis=1)
