"""Samples in SQL: stored in batches, looked up by the key of their configuration."""

import math
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import func, select

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics, scored_by_kl
from storage.contract import Samples
from storage.documents import check_protocol, configuration_document, configuration_key
from storage.records import Sample
from storage.rows import folds_of, metrics_of, sample_of
from storage.sql_store import SqlStore, require_artifact, require_calibration, require_model
from storage.tables import SampleRow

LOOKUP_CHUNK: Final = 500
"""Keys in one SELECT: far below the 32,766 parameters of SQLite and the 65,535 of PostgreSQL."""


class SampleStore(SqlStore, Samples):
    """`storage.contract.Samples` in SQL."""

    def add_samples(self, samples: Sequence[Sample]) -> int:
        if not samples:
            return 0
        with self._writing() as session:
            for model_id in sorted({sample.model_id for sample in samples}):
                # The lock makes writers of one model take turns on PostgreSQL: overlapping batches in different order
                # would deadlock on the unique index, and row numbers would not follow the order of commits.
                require_model(session, model_id, lock=True)
            rows = [_row(sample, self._anatomy(session, sample.model_id)) for sample in samples]
            for calibration_id in sorted({sample.calibration_id for sample in samples}):
                require_calibration(session, calibration_id)
            for sha256 in sorted({sample.ranking_sha256 for sample in samples}):
                require_artifact(session, sha256)
            return self._insert_new(session, SampleRow, rows)

    def find_samples(
        self,
        model_id: str,
        ranking_sha256: str,
        calibration_id: str,
        architectures: Sequence[Architecture],
        *,
        protocol: str = "",
    ) -> dict[Architecture, Metrics]:
        metrics: dict[str, Metrics] = {}
        columns = (
            SampleRow.kl,
            SampleRow.nll,
            SampleRow.accuracy,
            SampleRow.num_tokens,
            SampleRow.num_answers,
            SampleRow.agreement,
            SampleRow.folds,
        )
        check_protocol(protocol)
        with self._reading() as session:
            anatomy = self._find_anatomy(session, model_id)
            if anatomy is None:
                return {}
            asked = {configuration_key(configuration_document(anatomy, a), protocol): a for a in architectures}
            keys = list(asked)
            for start in range(0, len(keys), LOOKUP_CHUNK):
                found = session.execute(
                    select(SampleRow.configuration_key, *columns).where(
                        SampleRow.model_id == model_id,
                        SampleRow.ranking_sha256 == ranking_sha256,
                        SampleRow.calibration_id == calibration_id,
                        SampleRow.configuration_key.in_(keys[start : start + LOOKUP_CHUNK]),
                    )
                )
                metrics |= {row.configuration_key: metrics_of(row) for row in found}
        return {architecture: metrics[key] for key, architecture in asked.items() if key in metrics}

    def list_samples(
        self,
        model_id: str,
        *,
        ranking_sha256: str | None = None,
        calibration_id: str | None = None,
        protocol: str = "",
    ) -> list[Sample]:
        query = select(SampleRow).where(SampleRow.model_id == model_id, SampleRow.protocol == protocol)
        if ranking_sha256 is not None:
            query = query.where(SampleRow.ranking_sha256 == ranking_sha256)
        if calibration_id is not None:
            query = query.where(SampleRow.calibration_id == calibration_id)
        with self._reading() as session:
            rows = session.scalars(query.order_by(SampleRow.number))
            return [sample_of(row, self._anatomy(session, model_id)) for row in rows]

    def is_scored_by_kl(self, model_id: str, ranking_sha256: str, calibration_id: str, *, protocol: str = "") -> bool:
        query = select(SampleRow.folds).where(
            SampleRow.model_id == model_id,
            SampleRow.ranking_sha256 == ranking_sha256,
            SampleRow.calibration_id == calibration_id,
            SampleRow.protocol == protocol,
        )
        with self._reading() as session:
            return any(scored_by_kl(folds_of(folds)) for folds in session.scalars(query))

    def count_samples(self, model_id: str) -> int:
        with self._reading() as session:
            return session.scalar(select(func.count()).where(SampleRow.model_id == model_id)) or 0


def _row(sample: Sample, anatomy: ModelAnatomy) -> dict[str, Any]:
    agreement = sample.metrics.agreement
    folds = sample.metrics.folds
    measured = [sample.metrics.kl, sample.metrics.nll, sample.metrics.accuracy, agreement, sample.seconds]
    measured += [value for fold in folds or () for value in fold]
    if not all(value is None or math.isfinite(value) for value in measured):
        raise InputError(
            "the metrics and seconds of a sample must be finite numbers",
            values=f"{sample.metrics}, seconds={sample.seconds}, {sample.architecture.document()}",
            remedy="Evaluate in float32 or bfloat16: float16 overflows",
        )
    check_protocol(sample.protocol)
    configuration = configuration_document(anatomy, sample.architecture)
    return {
        "model_id": sample.model_id,
        "ranking_sha256": sample.ranking_sha256,
        "calibration_id": sample.calibration_id,
        "configuration_key": configuration_key(configuration, sample.protocol),
        "configuration": configuration,
        "kl": float(sample.metrics.kl),
        "nll": float(sample.metrics.nll),
        "accuracy": float(sample.metrics.accuracy),
        "agreement": None if agreement is None else float(agreement),
        "num_tokens": int(sample.metrics.num_tokens),
        "num_answers": int(sample.metrics.num_answers),
        "seconds": float(sample.seconds),
        "source": sample.source,
        "protocol": sample.protocol,
        "folds": None if folds is None else [list(fold) for fold in folds],
    }
