"""Removing a model with everything that is known of it, and what that is.

What nobody else refers to goes too: its rankings, statistics and predictors' weights. Calibration sets and data sets
stay, since other models may be measured on them; jobs stay as a record of what was done.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, delete, func, literal_column, select, union
from sqlalchemy.orm import Session

from pruning.errors import ConflictError
from storage.records import JobStatus
from storage.sql_store import SqlStore, require
from storage.tables import (
    ArtifactRow,
    JobRow,
    ModelRow,
    PlanRequestRow,
    PlanRow,
    PredictorRow,
    SampleRow,
    SearchRow,
    StatisticsRow,
)


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes with a model: rows by table, and the bytes of its artifacts."""

    model_id: str
    rows: dict[str, int]
    artifact_bytes: int


_OWN: Final = (StatisticsRow, SampleRow, PredictorRow, SearchRow, PlanRow)


class RemovalStore(SqlStore):
    """The part of the repository that removes."""

    def plan_removal(self, model_id: str) -> Removal:
        with self._reading() as session:
            return _removal(session, model_id)

    def remove_model(self, model_id: str) -> Removal:
        with self._writing() as session:
            # Rows that refer to the model wait, or are there already and go too.
            locked = session.scalar(select(ModelRow.id).where(ModelRow.id == model_id).with_for_update())
            require(locked, "model", model_id, "List the models with `lop model list`")
            active = session.scalars(
                select(JobRow.id).where(
                    JobRow.model_id == model_id, JobRow.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
                )
            ).all()
            if active:
                raise ConflictError(
                    "a model is removed when no job is about it any more",
                    values=f"{len(active)} wait or run, first {active[0]}",
                    remedy="Cancel them with `lop job cancel ID`, and wait until they have stopped",
                )
            removal = _removal(session, model_id)
            artifacts = session.scalars(_artifacts_of(model_id)).all()
            plans = select(PlanRow.id).where(PlanRow.model_id == model_id)
            session.execute(delete(PlanRequestRow).where(PlanRequestRow.plan_id.in_(plans)))
            for table in _OWN:
                session.execute(delete(table).where(table.model_id == model_id))
            session.execute(delete(ModelRow).where(ModelRow.id == model_id))
            for sha256 in artifacts:
                if not _is_referred_to(session, sha256):
                    session.execute(delete(ArtifactRow).where(ArtifactRow.sha256 == sha256))
        self._anatomies.pop(model_id, None)
        return removal


def _removal(session: Session, model_id: str) -> Removal:
    found = session.scalar(select(ModelRow.id).where(ModelRow.id == model_id))
    require(found, "model", model_id, "List the models with `lop model list`")
    rows = {
        table.__tablename__: session.scalar(select(func.count()).select_from(table).where(table.model_id == model_id))
        or 0
        for table in _OWN
    }
    own = [x for x in session.scalars(_artifacts_of(model_id)).all() if not _is_referred_to(session, x, but=model_id)]
    size = 0
    for sha256 in own:
        size += session.scalar(select(func.length(ArtifactRow.content)).where(ArtifactRow.sha256 == sha256)) or 0
    return Removal(model_id, rows | {"artifacts": len(own)}, size)


_REFERENCES: Final = (
    (ModelRow.ranking_sha256, ModelRow.id),
    (StatisticsRow.sha256, StatisticsRow.model_id),
    (SampleRow.ranking_sha256, SampleRow.model_id),
    (PredictorRow.weights_sha256, PredictorRow.model_id),
)
"""Columns that name artifacts, each with the column of the model that it is of."""


def _artifacts_of(model_id: str) -> Select[Any]:
    """Artifacts that rows of the model name, its plans' rankings included."""
    columns = [select(sha256.label("sha256")).where(owner == model_id) for sha256, owner in _REFERENCES]
    ranking = PlanRow.document["ranking"]["sha256"].as_string().label("sha256")
    found = union(*columns, select(ranking).where(PlanRow.model_id == model_id)).subquery()
    return select(found.c.sha256).where(found.c.sha256.is_not(None)).order_by(found.c.sha256)


def _is_referred_to(session: Session, sha256: str, *, but: str | None = None) -> bool:
    """Whether a row names the artifact, of another model than `but`."""
    for column, owner in _REFERENCES:
        query: Select[Any] = select(literal_column("1")).where(column == sha256)
        if but is not None:
            query = query.where(owner != but)
        if session.scalar(query.limit(1)) is not None:
            return True
    ranking = PlanRow.document["ranking"]["sha256"].as_string()
    plans: Select[Any] = select(literal_column("1")).where(ranking == sha256)
    if but is not None:
        plans = plans.where(PlanRow.model_id != but)
    return session.scalar(plans.limit(1)) is not None
