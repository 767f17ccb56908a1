"""Between rows of the tables and the records that the repository hands out."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.profile import DeviceProfile
from pruning.devices.tables import STORED
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.plan import PruningPlan
from storage.documents import configuration_architecture
from storage.records import (
    CalibrationRecord,
    DatasetRecord,
    DeviceRecord,
    JobEvent,
    JobEventKind,
    JobProgress,
    JobRecord,
    JobStatus,
    KeyRecord,
    KeyScope,
    ModelRecord,
    PredictorRecord,
    RankingOrigin,
    Sample,
    SearchRecord,
    StatisticsRecord,
)
from storage.tables import (
    CalibrationRow,
    DatasetRow,
    DeviceRow,
    JobEventRow,
    JobRow,
    KeyRow,
    ModelRow,
    PredictorRow,
    SampleRow,
    SearchRow,
    StatisticsRow,
)


def column_values(
    record: CalibrationRecord | DatasetRecord | KeyRecord | ModelRecord | PredictorRecord | StatisticsRecord,
) -> dict[str, Any]:
    """Field values by name: the columns of these tables are named like the fields."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    if isinstance(record, ModelRecord):
        values["anatomy"] = record.anatomy.to_dict()
        values["ranking_origin"] = None if record.ranking_origin is None else dataclasses.asdict(record.ranking_origin)
    return values


def model_record(row: ModelRow) -> ModelRecord:
    return ModelRecord(
        id=row.id,
        anatomy=ModelAnatomy.from_dict(row.anatomy),
        weights_sha256=row.weights_sha256,
        ranking_sha256=row.ranking_sha256,
        path=row.path,
        created_at=row.created_at,
        ranking_origin=None if row.ranking_origin is None else RankingOrigin(**row.ranking_origin),
    )


def calibration_record(row: CalibrationRow) -> CalibrationRecord:
    return CalibrationRecord(
        id=row.id,
        name=row.name,
        num_conversations=row.num_conversations,
        num_answers=row.num_answers,
        created_at=row.created_at,
    )


def statistics_record(row: StatisticsRow) -> StatisticsRecord:
    return StatisticsRecord(
        model_id=row.model_id,
        kind=row.kind,
        calibration_id=row.calibration_id,
        sha256=row.sha256,
        created_at=row.created_at,
    )


def predictor_record(row: PredictorRow) -> PredictorRecord:
    return PredictorRecord(
        id=row.id,
        model_id=row.model_id,
        weights_sha256=row.weights_sha256,
        config=row.config,
        created_at=row.created_at,
        space=row.space,
    )


def device_record(row: DeviceRow) -> DeviceRecord:
    profile = DeviceProfile.model_validate_json(json.dumps(row.profile), context=STORED)
    return DeviceRecord(profile=profile, created_at=row.created_at)


def plan_of(document: Mapping[str, Any]) -> PruningPlan:
    return PruningPlan.from_document(document)


def metrics_of(row: SampleRow | Row[*tuple[Any, ...]]) -> Metrics:
    """Of a row, or of the columns of one that are named as the fields."""
    folds = folds_of(row.folds)
    return Metrics(row.kl, row.nll, row.accuracy, row.num_tokens, row.num_answers, row.agreement, folds)


def folds_of(column: Sequence[Sequence[Any]] | None) -> tuple[FoldMetrics, ...] | None:
    return None if column is None else tuple(FoldMetrics(*fold) for fold in column)


def sample_of(row: SampleRow, anatomy: ModelAnatomy) -> Sample:
    return Sample(
        model_id=row.model_id,
        ranking_sha256=row.ranking_sha256,
        calibration_id=row.calibration_id,
        architecture=configuration_architecture(anatomy, row.configuration),
        metrics=metrics_of(row),
        seconds=row.seconds,
        source=row.source,
        protocol=row.protocol,
    )


def search_record(row: SearchRow) -> SearchRecord:
    return SearchRecord(
        id=row.id,
        model_id=row.model_id,
        settings=row.settings,
        result=row.result,
        created_at=row.created_at,
        space=row.space,
    )


def job_record(row: JobRow) -> JobRecord:
    return JobRecord(
        id=row.id,
        kind=row.kind,
        model_id=row.model_id,
        settings=row.settings,
        status=JobStatus(row.status),
        asked_by=row.asked_by,
        created_at=row.created_at,
        is_cancelling=row.is_cancelling,
        worker=row.worker,
        heartbeat_at=row.heartbeat_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempts=row.attempts,
        progress=None if row.progress is None else JobProgress(**row.progress),
        result=row.result,
        error=row.error,
    )


def job_event(row: JobEventRow) -> JobEvent:
    return JobEvent(row.number, JobEventKind(row.kind), row.document, row.created_at)


def dataset_record(row: DatasetRow) -> DatasetRecord:
    return DatasetRecord(
        id=row.id,
        name=row.name,
        num_conversations=row.num_conversations,
        num_answers=row.num_answers,
        num_pictures=row.num_pictures,
        size_bytes=row.size_bytes,
        added_by=row.added_by,
        created_at=row.created_at,
    )


def key_record(row: KeyRow) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        name=row.name,
        scope=KeyScope(row.scope),
        salt=row.salt,
        digest=row.digest,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        limit=row.limit,
    )
