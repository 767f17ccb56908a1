"""Stored samples as training examples: every sample teaches the values, those near the frontier teach the policy.

Letters: N samples, L decisions (one a layer, in a space of FFN widths).
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.planning.space import Space
from storage.records import Sample
from values.decisions import is_of_ffn, pruned_decisions, units_in
from values.encoding import Encoding
from values.kl_floor import log_kl
from values.typical_kl import TypicalKl

_logger = logging.getLogger("values.dataset")

MIN_SAMPLES = 64
MIN_SEARCHED_SAMPLES = 20
"""Samples that cut at two decisions or more. A 90% interval from held-out residuals needs 19 of them at least."""

FRONTIER_BANDWIDTH = 0.03
"""Retention within which samples count as neighbours: 3 of the 96 level steps of 12 layers of 8 levels."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Samples as arrays, in an order that does not depend on the order they were stored in.

    Attributes:
        fractions: [N, L] kept fraction of each decision.
        log_kl: [N] log KL in nats that is typical of their scores (`values.typical_kl`): what values learn.
        measured_log_kl: [N] of the samples themselves.
        accuracy: [N] exact match on the calibration answers.
        agreement: [N] with the dense model on answer tokens; NaN in samples from before it was measured.
        retention: [N] part that is kept of the parameters that may go.
        gap: [N] log KL above the frontier, 0 at the best known configurations.
        searched: bool [N] cuts at two decisions or more.
        levels: [N, L] choices of the space, -1 where what is kept is none of its options.
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


def check_samples(space: Space, samples: Sequence[Sample]) -> list[Sample]:
    """The distinct samples of `space`, ordered by what they keep; a warning says how many others are left out.

    Values know nothing but what the space decides, and a database may have samples of other spaces.

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
    distinct: dict[tuple[int, ...], Sample] = {}
    left_out: list[Sample] = []
    for sample in samples:
        units = units_in(space, sample.architecture)
        if units is None:
            left_out.append(sample)
            continue
        if not -1e-3 <= sample.metrics.kl < float("inf"):
            raise InputError(
                "a sample's KL must be a finite number that is not negative",
                values=f"kl={sample.metrics.kl} at {list(units)}",
                remedy="Remove the sample and evaluate it again",
            )
        distinct.setdefault(units, sample)
    if left_out:
        _logger.warning(
            "%d of %d samples are left out of the training: they change more than its space, such as %s",
            len(left_out),
            len(samples),
            left_out[0].architecture.document(),
        )
    what = "layers" if is_of_ffn(space) else "decisions"
    searched = sum(len(pruned_decisions(space, units)) >= 2 for units in distinct)
    if len(distinct) < MIN_SAMPLES or searched < MIN_SEARCHED_SAMPLES:
        raise InputError(
            f"training a predictor needs at least {MIN_SAMPLES} samples, {MIN_SEARCHED_SAMPLES} of which prune two "
            f"{what} or more",
            values=f"{len(distinct)} samples, {searched} of them prune two {what} or more",
            remedy="Add some with `lop search` in the same space"
            if space.num_decisions > 1
            else "One decision has nothing to allocate",
        )
    return [distinct[units] for units in sorted(distinct)]


def samples_sha256(space: Space, samples: Sequence[Sample]) -> str:
    """Content hash over what is kept and metrics, whatever the order; as ever of samples without what is new."""
    rows = sorted(
        (
            list(units_in(space, s.architecture) or ()),
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
    kept = encoding.units_of(samples)
    fractions = encoding.kept_fractions(kept)
    typical = TypicalKl.of([sample.metrics for sample in samples])
    values = np.array([typical(sample.metrics) for sample in samples])
    retention = fractions @ encoding.parameter_shares
    # [N, L, K]: the option that keeps as much; of repeated ones the first.
    found = np.array(kept)[:, :, None] == encoding.units
    levels = np.where(found.any(axis=2).all(axis=1, keepdims=True), found.argmax(axis=2), -1)
    return TrainingData(
        fractions=fractions,
        log_kl=values,
        measured_log_kl=np.array([log_kl(sample.metrics.kl) for sample in samples]),
        accuracy=np.array([sample.metrics.accuracy for sample in samples]),
        agreement=np.array([sample.metrics.agreement for sample in samples], dtype=np.float64),  # None becomes NaN
        retention=retention,
        gap=values - frontier(retention, values, retention),
        searched=np.array([len(pruned_decisions(encoding.space, units)) >= 2 for units in kept]),
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
