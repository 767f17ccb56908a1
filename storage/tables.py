"""The tables, as SQLAlchemy 2 declarative classes; `migrations/` builds the same schema step by step.

Strings have no length: SQLite would not enforce one, and the two databases must accept the same values. Counts are
64-bit. Rows are only ever inserted, but for `jobs`, which live along `JobStatus`, and for `keys`, which are used and
revoked; with a model goes all that is known of it (`storage.removal`), and old plans,
jobs and data sets go (`storage.old_plans`, `storage.old_jobs`, `storage.old_datasets`).
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from pruning.errors import InputError
from storage.records import JobStatus

NAMING_CONVENTION: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: time zone required going in, UTC coming out. SQLite keeps no zone, so UTC is what is stored there."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise InputError(
                "a stored time must have a time zone", values=repr(value), remedy="Use datetime.now(UTC), not utcnow()"
            )
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Registry of all tables; Python types map to the same column types everywhere."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        float: Double(),
        int: BigInteger(),
        str: String(),
        bytes: LargeBinary(),
    }


# SQLite numbers rows by itself only in a column that is declared INTEGER, which holds 64 bits there.
_RowNumber: Final = BigInteger().with_variant(Integer(), "sqlite")


class ArtifactRow(Base):
    __tablename__ = "artifacts"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    media_type: Mapped[str]
    content: Mapped[bytes]


class ModelRow(Base):
    __tablename__ = "models"

    id: Mapped[str] = mapped_column(primary_key=True)
    anatomy: Mapped[dict[str, Any]]
    weights_sha256: Mapped[str]
    ranking_sha256: Mapped[str] = mapped_column(ForeignKey("artifacts.sha256"))
    path: Mapped[str]
    created_at: Mapped[datetime]
    ranking_origin: Mapped[dict[str, Any] | None]


class CalibrationRow(Base):
    __tablename__ = "calibrations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    num_conversations: Mapped[int]
    num_answers: Mapped[int]
    created_at: Mapped[datetime]


class StatisticsRow(Base):
    __tablename__ = "statistics"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("artifacts.sha256"))
    created_at: Mapped[datetime]


class SampleRow(Base):
    """`configuration_key` is made of `configuration` and `protocol` (storage/documents.py), so it tells both apart.

    `agreement` and `folds` are null in samples from before they were measured, the latter also where the
    conversations were too few for folds.
    """

    __tablename__ = "samples"
    __table_args__ = (
        UniqueConstraint(  # named by hand: the convention's name is longer than the 63 bytes PostgreSQL allows
            "model_id", "ranking_sha256", "calibration_id", "configuration_key", name="uq_samples_configuration"
        ),
    )

    number: Mapped[int] = mapped_column(_RowNumber, primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    ranking_sha256: Mapped[str] = mapped_column(ForeignKey("artifacts.sha256"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    configuration_key: Mapped[str]
    configuration: Mapped[dict[str, Any]]
    kl: Mapped[float]
    nll: Mapped[float]
    accuracy: Mapped[float]
    agreement: Mapped[float | None]
    num_tokens: Mapped[int]
    num_answers: Mapped[int]
    seconds: Mapped[float]
    source: Mapped[str]
    protocol: Mapped[str] = mapped_column(server_default="")
    folds: Mapped[list[Any] | None]


class PredictorRow(Base):
    __tablename__ = "predictors"
    __table_args__ = (Index(None, "model_id", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    weights_sha256: Mapped[str] = mapped_column(ForeignKey("artifacts.sha256"))
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    space: Mapped[dict[str, Any] | None]


class PlanRow(Base):
    __tablename__ = "plans"

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class PlanRequestRow(Base):
    """Which plan answered a request. A plan's id is its content, so different requests may end in one plan."""

    __tablename__ = "plan_requests"
    __table_args__ = (UniqueConstraint("request_key"), Index(None, "plan_id"))

    number: Mapped[int] = mapped_column(_RowNumber, primary_key=True)
    request_key: Mapped[str]
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))


class DeviceRow(Base):
    """A profile. An id has a row for each time that it was measured; `number` says which is newest."""

    __tablename__ = "devices"
    __table_args__ = (Index(None, "id", "number"),)

    number: Mapped[int] = mapped_column(_RowNumber, primary_key=True)
    id: Mapped[str]
    profile: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class SearchRow(Base):
    """A search that is finished."""

    __tablename__ = "searches"
    __table_args__ = (UniqueConstraint("id"), Index(None, "model_id", "number"))

    number: Mapped[int] = mapped_column(_RowNumber, primary_key=True)
    id: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    settings: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    space: Mapped[dict[str, Any] | None]


class JobRow(Base):
    """What workers claim. `model_id` refers to nothing: the model may be registered by the job, or gone."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("id"),
        UniqueConstraint("asked_by", "idempotency_key", name="uq_jobs_idempotency"),
        Index(None, "status", "number"),
        CheckConstraint(f"status IN ({', '.join(repr(str(status)) for status in JobStatus)})", name="status_known"),
    )

    number: Mapped[int] = mapped_column(_RowNumber, primary_key=True)
    id: Mapped[str]
    kind: Mapped[str]
    model_id: Mapped[str]
    settings: Mapped[dict[str, Any]]
    status: Mapped[str]
    is_cancelling: Mapped[bool]
    asked_by: Mapped[str]
    idempotency_key: Mapped[str | None]
    worker: Mapped[str | None]
    heartbeat_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    attempts: Mapped[int]
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    num_events: Mapped[int]
    created_at: Mapped[datetime]


class JobEventRow(Base):
    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class DatasetRow(Base):
    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    num_conversations: Mapped[int]
    num_answers: Mapped[int]
    num_pictures: Mapped[int]
    size_bytes: Mapped[int]
    added_by: Mapped[str]
    created_at: Mapped[datetime]


class KeyRow(Base):
    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    scope: Mapped[str]
    salt: Mapped[str]
    digest: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    limit: Mapped[str | None]
