"""Plans that nobody needs any more: every position of a slider is a plan, and plans are kept for ever otherwise.

A plan is what its request leads to: asked for again, it is made again, under the same id as long as the data that it is
made from and the version of this program are the same. Until then its link is of nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, func, select

from storage.maintenance import MaintenanceStore
from storage.records import JobStatus
from storage.tables import JobRow, ModelRow, PlanRequestRow, PlanRow

_AT_ONCE: Final = 500
"""Plans that go in one transaction, for which new plans of the model wait; over SQLite, whatever writes."""


@dataclass(frozen=True, slots=True)
class OldPlans:
    """Of plans that were made before a moment: how many there are, by model, and how many more stay all the same, since
    jobs name them that wait, run, or may be asked for again."""

    by_model: dict[str, int]
    needed: int

    @property
    def count(self) -> int:
        return sum(self.by_model.values())


def old_plans(url: str, before: datetime) -> OldPlans:
    """Those of the database at `url` that were made before `before`, which has a time zone.

    Raises SchemaRevisionError, StorageUnavailableError: it is at another revision, or cannot be read.
    """
    with _Store.open(url) as store:
        return store.count(before)


def remove_old_plans(url: str, before: datetime) -> OldPlans:
    """Remove what `old_plans` tells, and return what went. Servers and workers go on; killed, run it again.

    Raises as `old_plans`.
    """
    with _Store.open(url) as store:
        return store.remove(before)


class _Store(MaintenanceStore):
    """The plans of one database."""

    def count(self, before: datetime) -> OldPlans:
        with self._reading() as session:
            query = select(PlanRow.model_id, func.count()).where(_is_old(before)).group_by(PlanRow.model_id)
            by_model = {row[0]: int(row[1]) for row in session.execute(query.order_by(PlanRow.model_id))}
            kept = select(func.count()).select_from(PlanRow).where(PlanRow.created_at < before, PlanRow.id.in_(_NEEDED))
            return OldPlans(by_model, session.scalar(kept) or 0)

    def remove(self, before: datetime) -> OldPlans:
        found = self.count(before)
        removed = {model_id: sum(self._parts(model_id, before)) for model_id in found.by_model}
        return OldPlans(removed, found.needed)

    def _parts(self, model_id: str, before: datetime) -> Iterator[int]:
        """Removes in parts; how many went with each."""
        with self._reading() as session:  # which looks through the whole table, while others write
            ids = session.scalars(select(PlanRow.id).where(PlanRow.model_id == model_id, _is_old(before))).all()
        for start in range(0, len(ids), _AT_ONCE):
            with self._writing() as session:
                # A plan of the model that is being stored waits, or is there already: it would find half of itself.
                session.scalar(select(ModelRow.id).where(ModelRow.id == model_id).with_for_update())
                still = select(PlanRow.id).where(PlanRow.id.in_(ids[start : start + _AT_ONCE]), _is_old(before))
                going = session.scalars(still).all()
                session.execute(delete(PlanRequestRow).where(PlanRequestRow.plan_id.in_(going)))
                session.execute(delete(PlanRow).where(PlanRow.id.in_(going)))
            yield len(going)


_PLAN_OF_JOB: Final = JobRow.settings["plan"].as_string()
_NEEDED: Final = select(_PLAN_OF_JOB).where(JobRow.status != JobStatus.DONE, _PLAN_OF_JOB.is_not(None))
"""Ids of the plans that jobs name which wait, run, or may be asked for again (`Jobs.retry_job`)."""


def _is_old(before: datetime) -> ColumnElement[bool]:
    return and_(PlanRow.created_at < before, PlanRow.id.not_in(_NEEDED))
