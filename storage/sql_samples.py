"""Samples in SQL: stored in batches, looked up by the key of their configuration."""

import math
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import func, select

from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from storage.documents import configuration_document, configuration_key
from storage.records import Sample
from storage.rows import sample_of
from storage.sql_store import SqlStore, require_artifact, require_calibration, require_model
from storage.tables import SampleRow

LOOKUP_CHUNK: Final = 500
"""Keys in one SELECT: far below the 32,766 parameters of SQLite and the 65,535 of PostgreSQL."""


class SampleStore(SqlStore):
    """The sample methods of `storage.contract.Repository`."""

    def add_samples(self, samples: Sequence[Sample]) -> int:
        """Store samples, skipping those already there; return how many were new. All or none are stored.

        Raises NotFoundError if their model, ranking or calibration set is not stored, InputError for a metric that is
        not a finite number.
        """
        rows = [_row(sample) for sample in samples]
        if not rows:
            return 0
        with self._writing() as session:
            for model_id in sorted({sample.model_id for sample in samples}):
                # The lock makes writers of one model take turns on PostgreSQL: overlapping batches in different order
                # would deadlock on the unique index, and row numbers would not follow the order of commits.
                require_model(session, model_id, lock=True)
            for calibration_id in sorted({sample.calibration_id for sample in samples}):
                require_calibration(session, calibration_id)
            for sha256 in sorted({sample.ranking_sha256 for sample in samples}):
                require_artifact(session, sha256)
            return self._insert_new(session, SampleRow, rows)

    def find_samples(
        self, model_id: str, ranking_sha256: str, calibration_id: str, widths: Sequence[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Metrics]:
        """The metrics already measured, for those of `widths` that were; keys in the order they were asked for."""
        asked = {configuration_key(configuration_document(w)): w for w in widths}
        keys = list(asked)
        metrics: dict[str, Metrics] = {}
        columns = (
            SampleRow.kl,
            SampleRow.nll,
            SampleRow.accuracy,
            SampleRow.num_tokens,
            SampleRow.num_answers,
            SampleRow.agreement,
        )
        with self._reading() as session:
            for start in range(0, len(keys), LOOKUP_CHUNK):
                found = session.execute(
                    select(SampleRow.configuration_key, *columns).where(
                        SampleRow.model_id == model_id,
                        SampleRow.ranking_sha256 == ranking_sha256,
                        SampleRow.calibration_id == calibration_id,
                        SampleRow.configuration_key.in_(keys[start : start + LOOKUP_CHUNK]),
                    )
                )
                for key, kl, nll, accuracy, num_tokens, num_answers, agreement in found:
                    metrics[key] = Metrics(kl, nll, accuracy, num_tokens, num_answers, agreement)
        return {configuration: metrics[key] for key, configuration in asked.items() if key in metrics}

    def list_samples(
        self, model_id: str, *, ranking_sha256: str | None = None, calibration_id: str | None = None
    ) -> list[Sample]:
        """All samples of a model, in the order they were stored."""
        query = select(SampleRow).where(SampleRow.model_id == model_id).order_by(SampleRow.number)
        if ranking_sha256 is not None:
            query = query.where(SampleRow.ranking_sha256 == ranking_sha256)
        if calibration_id is not None:
            query = query.where(SampleRow.calibration_id == calibration_id)
        with self._reading() as session:
            return [sample_of(row) for row in session.scalars(query)]

    def count_samples(self, model_id: str) -> int:
        """Samples of a model over all rankings and calibration sets."""
        with self._reading() as session:
            return session.scalar(select(func.count()).where(SampleRow.model_id == model_id)) or 0


def _row(sample: Sample) -> dict[str, Any]:
    agreement = sample.metrics.agreement
    measured = (sample.metrics.kl, sample.metrics.nll, sample.metrics.accuracy, agreement, sample.seconds)
    if not all(value is None or math.isfinite(value) for value in measured):
        raise InputError(
            "the metrics and seconds of a sample must be finite numbers",
            values=f"{sample.metrics}, seconds={sample.seconds}, widths={sample.widths}",
            remedy="Evaluate in float32 or bfloat16: float16 overflows",
        )
    configuration = configuration_document(sample.widths)
    return {
        "model_id": sample.model_id,
        "ranking_sha256": sample.ranking_sha256,
        "calibration_id": sample.calibration_id,
        "configuration_key": configuration_key(configuration),
        "configuration": configuration,
        "kl": float(sample.metrics.kl),
        "nll": float(sample.metrics.nll),
        "accuracy": float(sample.metrics.accuracy),
        "agreement": None if agreement is None else float(agreement),
        "num_tokens": int(sample.metrics.num_tokens),
        "num_answers": int(sample.metrics.num_answers),
        "seconds": float(sample.seconds),
        "source": sample.source,
    }
