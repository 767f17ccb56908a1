"""The repository over SQLite and PostgreSQL: how it is opened, and what has no file of its own."""

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Engine, bindparam, select
from sqlalchemy.orm import Session

from pruning.errors import StorageUnavailableError
from storage.commit_marks import CommitMarks
from storage.contract import Repository
from storage.database import (
    check_revision,
    create_database_engine,
    database_errors,
    migrate,
    share_between_processes,
    unavailable,
)
from storage.documents import json_document
from storage.records import Artifact, CalibrationRecord, ModelRecord, PlanRecord, PredictorRecord
from storage.removal import RemovalStore
from storage.room import try_postgresql, try_sqlite
from storage.rows import calibration_record, column_values, model_record, plan_of, predictor_record
from storage.sql_datasets import DatasetStore
from storage.sql_devices import DeviceStore
from storage.sql_jobs import JobStore
from storage.sql_keys import KeyStore
from storage.sql_samples import SampleStore
from storage.sql_searches import SearchStore
from storage.sql_statistics import StatisticsStore
from storage.sql_store import conflict, require, require_artifact, require_model
from storage.tables import ArtifactRow, CalibrationRow, ModelRow, PlanRequestRow, PlanRow, PredictorRow
from storage.url import masked, parse_url

Record = TypeVar("Record", ModelRecord, CalibrationRecord, PredictorRecord)

_LATEST_PREDICTOR_ID = (
    select(PredictorRow.id)
    .where(PredictorRow.model_id == bindparam("model_id"))
    .order_by(PredictorRow.created_at.desc(), PredictorRow.id.desc())
    .limit(1)
)
_REGISTERED_AT = select(ModelRow.created_at).where(ModelRow.id == bindparam("model_id"))
_ANSWERED_PLAN = (
    select(PlanRow.document)
    .join(PlanRequestRow, PlanRequestRow.plan_id == PlanRow.id)
    .where(PlanRequestRow.request_key == bindparam("request_key"))
)


def open_repository(url: str, *, create: bool = False) -> "SqlRepository":
    """The repository at `sqlite:///path/to/file.db` or `postgresql://user:password@host:5432/name`.

    Args:
        url: the database; its password is never shown in an error.
        create: create an absent SQLite file, and the schema of a database that has none. A database with a schema of
            another revision is never changed: that takes `storage.database.upgrade`.

    Raises:
        InputError: not a URL of a database that is supported.
        StorageUnavailableError: the database cannot be reached, opened or read.
        SchemaRevisionError: its schema is absent (without `create`), older or newer.
    """
    parsed = parse_url(url)
    if create:
        migrate(parsed, only_empty=True)
    engine = create_database_engine(parsed)
    try:
        check_revision(engine)
        share_between_processes(parsed)
    except BaseException:
        engine.dispose()
        raise
    return SqlRepository(engine)


class SqlRepository(
    StatisticsStore,
    SampleStore,
    SearchStore,
    JobStore,
    DatasetStore,
    KeyStore,
    DeviceStore,
    RemovalStore,
    Repository,
):
    """`storage.contract.Repository` in SQL; made by `open_repository`. Close it, or use it as a context manager."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._marks = CommitMarks(engine)

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        self._marks.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def commit_mark(self) -> str | None:
        return self._marks.read()

    async def commit_mark_on_loop(self) -> str | None:
        return await self._marks.read_on_loop()

    def check(self) -> None:
        check_revision(self._engine)

    def check_writable(self) -> None:
        self.check()
        url = self._engine.url
        if not self._is_postgresql:
            try:
                try_sqlite(Path(url.database or ""))
            except OSError as error:
                raise unavailable(url, error) from error
            return
        with database_errors(self._engine), self._engine.connect() as connection:
            if not try_postgresql(connection):
                raise StorageUnavailableError(
                    "transactions of the database must be able to write",
                    values=f"{masked(url)}: they are read-only",
                    remedy="Connect to the primary, or set default_transaction_read_only to off",
                )

    # -- artifacts -----------------------------------------------------------------------------------------------
    def put_artifact(self, content: bytes, media_type: str) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        stored_type = select(ArtifactRow.media_type).where(ArtifactRow.sha256 == sha256)
        with self._writing() as session:
            self._insert_new(session, ArtifactRow, [{"sha256": sha256, "media_type": media_type, "content": content}])
            stored = session.scalars(stored_type).one()
        if stored != media_type:
            raise conflict("artifact", sha256, f"media type {stored!r} stored, {media_type!r} given")
        return sha256

    def get_artifact(self, sha256: str) -> Artifact:
        with self._reading() as session:
            row = require(session.get(ArtifactRow, sha256), "artifact", sha256, "Store it with put_artifact")
            return Artifact(sha256=row.sha256, media_type=row.media_type, content=row.content)

    # -- models --------------------------------------------------------------------------------------------------
    def add_model(self, model: ModelRecord) -> ModelRecord:
        with self._writing() as session:
            require_artifact(session, model.ranking_sha256)
            stored = self._add(session, ModelRow, model, model_record, free=("path", "ranking_origin"))
            kept = dataclasses.replace(
                stored, path=model.path, ranking_origin=stored.ranking_origin or model.ranking_origin
            )
            if kept != stored:
                row, values = session.get_one(ModelRow, model.id), column_values(kept)
                row.path, row.ranking_origin = values["path"], values["ranking_origin"]
            return kept

    def get_model(self, model_id: str) -> ModelRecord:
        with self._reading() as session:
            row = session.get(ModelRow, model_id)
            return model_record(require(row, "model", model_id, "List the models with `lop model list`"))

    def registered_at(self, model_id: str) -> datetime | None:
        return self._read_one(_REGISTERED_AT, model_id=model_id)

    def list_models(self) -> list[ModelRecord]:
        with self._reading() as session:
            rows = session.scalars(select(ModelRow).order_by(ModelRow.created_at, ModelRow.id))
            return [model_record(row) for row in rows]

    # -- calibration sets ----------------------------------------------------------------------------------------
    def add_calibration(self, calibration: CalibrationRecord) -> CalibrationRecord:
        with self._writing() as session:
            return self._add(session, CalibrationRow, calibration, calibration_record, free=("name",))

    def get_calibration(self, calibration_id: str) -> CalibrationRecord:
        with self._reading() as session:
            row = session.get(CalibrationRow, calibration_id)
            return calibration_record(require(row, "calibration set", calibration_id, "Store it with add_calibration"))

    # -- predictors ----------------------------------------------------------------------------------------------
    def add_predictor(self, predictor: PredictorRecord) -> PredictorRecord:
        config = json_document(predictor.config, "the config of a predictor")
        predictor = dataclasses.replace(predictor, config=config)
        with self._writing() as session:
            require_model(session, predictor.model_id)
            require_artifact(session, predictor.weights_sha256)
            stored = self._add(session, PredictorRow, predictor, predictor_record)
            if stored.created_at < predictor.created_at:
                session.get_one(PredictorRow, predictor.id).created_at = predictor.created_at
                return predictor
            return stored

    def get_predictor(self, predictor_id: str) -> PredictorRecord:
        with self._reading() as session:
            row = session.get(PredictorRow, predictor_id)
            return predictor_record(require(row, "predictor", predictor_id, "Train one with `lop train`"))

    def latest_predictor(self, model_id: str) -> PredictorRecord | None:
        query = select(PredictorRow).where(PredictorRow.model_id == model_id).limit(1)
        with self._reading() as session:
            row = session.scalar(query.order_by(PredictorRow.created_at.desc(), PredictorRow.id.desc()))
            return None if row is None else predictor_record(row)

    def latest_predictor_id(self, model_id: str) -> str | None:
        return self._read_one(_LATEST_PREDICTOR_ID, model_id=model_id)

    def list_predictor_spaces(self, model_id: str) -> list[tuple[str, dict[str, Any] | None]]:
        query = select(PredictorRow.id, PredictorRow.space).where(PredictorRow.model_id == model_id)
        with self._reading() as session:
            found = session.execute(query.order_by(PredictorRow.created_at, PredictorRow.id))
            return [(row.id, row.space) for row in found]

    def list_predictors(self, model_id: str | None = None) -> list[PredictorRecord]:
        query = select(PredictorRow).order_by(PredictorRow.created_at, PredictorRow.id)
        if model_id is not None:
            query = query.where(PredictorRow.model_id == model_id)
        with self._reading() as session:
            return [predictor_record(row) for row in session.scalars(query)]

    # -- plans ---------------------------------------------------------------------------------------------------
    def add_plan(self, record: PlanRecord) -> PlanRecord:
        plan = record.plan
        row = {
            "id": plan.plan_id,
            "model_id": plan.model.id,
            "document": plan.model_dump(mode="json"),
            "created_at": plan.created_at,
        }
        with self._writing() as session:
            require_model(session, plan.model.id)
            savepoint = session.begin_nested()
            first = plan
            if not self._insert_new(session, PlanRow, [row]):
                first = plan_of(session.get_one(PlanRow, plan.plan_id).document)
                if first.model_copy(update={"created_at": plan.created_at}) != plan:
                    raise conflict("plan", plan.plan_id, f"stored for {first.target!r}, given for {plan.target!r}")
            request = {"request_key": record.request_key, "plan_id": plan.plan_id}
            if self._insert_new(session, PlanRequestRow, [request]):
                savepoint.commit()
                return PlanRecord(request_key=record.request_key, plan=first)
            savepoint.rollback()  # it was answered before: the plan that nobody asked for goes again
            # The insert waited for the request that was there first.
            document = session.scalars(_ANSWERED_PLAN, {"request_key": record.request_key}).one()
            return PlanRecord(record.request_key, plan_of(document))

    def get_plan(self, plan_id: str) -> PlanRecord:
        query = (
            select(PlanRow, PlanRequestRow.request_key)
            .join(PlanRequestRow, PlanRequestRow.plan_id == PlanRow.id)
            .where(PlanRow.id == plan_id)
            .order_by(PlanRequestRow.number)
            .limit(1)
        )
        with self._reading() as session:
            found = session.execute(query).one_or_none()
            row, request_key = require(found, "plan", plan_id, "Request it again with `lop plan`")
            return PlanRecord(request_key=request_key, plan=plan_of(row.document))

    def find_plan(self, request_key: str) -> PlanRecord | None:
        document = self._read_one(_ANSWERED_PLAN, request_key=request_key)
        return None if document is None else PlanRecord(request_key, plan_of(document))

    def _add(
        self,
        session: Session,
        table: type[ModelRow] | type[CalibrationRow] | type[PredictorRow],
        record: Record,
        read: Callable[[Any], Record],
        *,
        free: tuple[str, ...] = (),
    ) -> Record:
        """The stored record under this id, which is `record` unless an equal one (but for `free`) was there before."""
        self._insert_new(session, table, [column_values(record)])
        stored = read(session.get_one(table, record.id))
        names = [field.name for field in dataclasses.fields(record) if field.name not in ("created_at", *free)]
        differing = [name for name in names if getattr(stored, name) != getattr(record, name)]
        if differing:
            raise conflict(table.__tablename__.removesuffix("s"), record.id, f"another {', '.join(differing)}")
        return stored
