"""Stored samples as training examples: every sample teaches the values, those near the frontier teach the policy.

Letters: N samples, L decoder layers.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from storage.records import Sample
from values.encoding import Encoding, pruned_layers
from values.kl_floor import log_kl
from values.typical_kl import TypicalKl

_logger = logging.getLogger("values.dataset")

MIN_SAMPLES = 64
MIN_SEARCHED_SAMPLES = 20
"""Samples that prune two layers or more. A 90% interval from held-out residuals needs 19 of them at least."""

FRONTIER_BANDWIDTH = 0.03
"""Retention within which samples count as neighbours: 3 of the 96 level steps of 12 layers of 8 levels."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Samples as arrays, in an order that does not depend on the order they were stored in.

    Attributes:
        fractions: [N, L] kept fraction of each layer.
        log_kl: [N] log KL in nats that is typical of their scores (`values.typical_kl`): what values learn.
        measured_log_kl: [N] of the samples themselves.
        accuracy: [N] exact match on the calibration answers.
        agreement: [N] with the dense model on answer tokens; NaN in samples from before it was measured.
        retention: [N] FFN parameters kept, as a fraction.
        gap: [N] log KL above the frontier, 0 at the best known configurations.
        searched: bool [N] prunes two layers or more.
        levels: [N, L] choices of the space, -1 where the widths are none of its points.
    """

    fractions: FloatArray
    log_kl: FloatArray
    measured_log_kl: FloatArray
    accuracy: FloatArray
    agreement: FloatArray
    retention: FloatArray
    gap: FloatArray
    searched: NDArray[np.bool_]
    levels: IntArray

    @property
    def num_samples(self) -> int:
        return len(self.log_kl)

    @property
    def searched_range(self) -> tuple[float, float]:
        """The least and the greatest retention that was searched."""
        retention = self.retention[self.searched]
        return float(retention.min()), float(retention.max())

    @property
    def on_grid(self) -> NDArray[np.bool_]:
        """bool [N]: can be decoded by the policy."""
        on_grid: NDArray[np.bool_] = np.all(self.levels >= 0, axis=1)
        return on_grid

    @property
    def exact_match_tells(self) -> bool:
        """Whether exact match says anything: the dense model, or where that is no sample any of them, has some."""
        dense = self.accuracy[np.all(self.fractions == 1.0, axis=1)]
        return bool((dense if len(dense) else self.accuracy).any())

    def imitation_weights(self, temperature: float) -> FloatArray:
        """[N] exp(-gap / temperature), 0 for what the policy cannot decode: near the best known counts most."""
        weights: FloatArray = np.exp(-self.gap / temperature) * self.on_grid
        return weights


def check_samples(anatomy: ModelAnatomy, samples: Sequence[Sample]) -> list[Sample]:
    """The distinct samples of FFN widths alone, ordered by widths; a warning says how many others are left out.

    Values know no skipped sub-layer, KV group or precision, which a database may have samples of nevertheless.

    Raises:
        InputError: too few of them, or measured under different conditions.
    """
    for what in ("model_id", "ranking_sha256", "calibration_id", "protocol"):
        found = sorted({getattr(sample, what) for sample in samples})
        if len(found) > 1:
            raise InputError(
                f"all samples of a training must share one {what}",
                values=", ".join(found[:3]),
                remedy=f"Choose the samples of one {what}",
            )
    dense = [layer.ffn_width for layer in anatomy.layers]
    distinct: dict[tuple[int, ...], Sample] = {}
    left_out: list[Sample] = []
    for sample in samples:
        widths = anatomy.ffn_widths_alone(sample.architecture)
        if widths is None or any(not 1 <= w <= d for w, d in zip(widths, dense, strict=True)):
            left_out.append(sample)
            continue
        if not -1e-3 <= sample.metrics.kl < float("inf"):
            raise InputError(
                "a sample's KL must be a finite number that is not negative",
                values=f"kl={sample.metrics.kl} at {list(widths)}",
                remedy="Remove the sample and evaluate it again",
            )
        distinct.setdefault(widths, sample)
    if left_out:
        _logger.warning(
            "%d of %d samples are left out of the training: they change more than FFN widths, such as %s",
            len(left_out),
            len(samples),
            left_out[0].architecture.document(),
        )
    searched = sum(1 for widths in distinct if sum(w < d for w, d in zip(widths, dense, strict=True)) >= 2)
    if len(distinct) < MIN_SAMPLES or searched < MIN_SEARCHED_SAMPLES:
        raise InputError(
            f"training a predictor needs at least {MIN_SAMPLES} samples, {MIN_SEARCHED_SAMPLES} of which prune two "
            "layers or more",
            values=f"{len(distinct)} samples, {searched} of them prune two layers or more",
            remedy="Add some with `lop search`" if len(dense) > 1 else "A model of one layer has nothing to allocate",
        )
    return [distinct[widths] for widths in sorted(distinct)]


def samples_sha256(anatomy: ModelAnatomy, samples: Sequence[Sample]) -> str:
    """Content hash over widths and metrics, whatever the order; as ever of samples without what is measured now."""
    rows = sorted(
        (
            list(anatomy.ffn_widths(s.architecture)),
            m.kl,
            m.nll,
            m.accuracy,
            *(() if m.agreement is None else (m.agreement,)),
            *(() if m.is_scored_by_kl else (m.score,)),
        )
        for s in samples
        for m in [s.metrics]
    )
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def training_data(encoding: Encoding, samples: Sequence[Sample]) -> TrainingData:
    """Arrays of `samples`, kept in their order."""
    kept = encoding.widths_of(samples)
    fractions = encoding.kept_fractions(kept)
    typical = TypicalKl.of([sample.metrics for sample in samples])
    values = np.array([typical(sample.metrics) for sample in samples])
    retention = fractions @ encoding.parameter_shares
    # [N, L, K]: the option whose width it is; a width that is no option is none of them.
    found = np.array(kept)[:, :, None] == encoding.widths
    levels = np.where(found.any(axis=2).all(axis=1, keepdims=True), found.argmax(axis=2), -1)
    return TrainingData(
        fractions=fractions,
        log_kl=values,
        measured_log_kl=np.array([log_kl(sample.metrics.kl) for sample in samples]),
        accuracy=np.array([sample.metrics.accuracy for sample in samples]),
        agreement=np.array([sample.metrics.agreement for sample in samples], dtype=np.float64),  # None becomes NaN
        retention=retention,
        gap=values - frontier(retention, values, retention),
        searched=np.array([len(pruned_layers(encoding.space, widths)) >= 2 for widths in kept]),
        levels=levels.astype(np.int64),
    )


def frontier(retention: FloatArray, values: FloatArray, at: FloatArray) -> FloatArray:
    """Best known log KL at the retentions `at` [A], from samples [N]: a smooth lower envelope, never above a sample.

    A sample bounds the frontier at its own retention and at every higher one (more channels are never worse for the
    best configuration); at a slightly lower retention it bounds it too, with a penalty that grows with the distance.
    """
    missing = np.maximum(retention[None, :] - at[:, None], 0.0) / FRONTIER_BANDWIDTH
    envelope: FloatArray = (values[None, :] + missing**2).min(axis=1)
    return envelope
