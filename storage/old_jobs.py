"""Jobs that ended long ago, with their events: nothing else takes them away.

What a job made (samples, predictors, checkpoints) stays. A job that is removed cannot be retried, and its idempotency
key makes a new one.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, func, select

from storage.maintenance import MaintenanceStore
from storage.records import JobStatus
from storage.tables import JobEventRow, JobRow

_AT_ONCE: Final = 100
"""Jobs that go in one transaction, each with up to some thousand events."""
_ENDED: Final = tuple(status for status in JobStatus if status.is_final)


def old_jobs(url: str, before: datetime) -> dict[str, int]:
    """How many jobs of the database at `url` ended before `before`, which has a time zone, by how they ended.

    Raises SchemaRevisionError, StorageUnavailableError: it is at another revision, or cannot be read.
    """
    with _Store.open(url) as store:
        return store.count(before)


def remove_old_jobs(url: str, before: datetime) -> dict[str, int]:
    """Remove what `old_jobs` tells, and return what went. Servers and workers go on; killed, run it again.

    Raises as `old_jobs`.
    """
    with _Store.open(url) as store:
        return store.remove(before)


class _Store(MaintenanceStore):
    """The jobs of one database."""

    def count(self, before: datetime) -> dict[str, int]:
        query = select(JobRow.status, func.count()).where(_is_old(before)).group_by(JobRow.status)
        with self._reading() as session:
            return {row[0]: int(row[1]) for row in session.execute(query.order_by(JobRow.status))}

    def remove(self, before: datetime) -> dict[str, int]:
        removed: dict[str, int] = {}
        for statuses in self._parts(before):
            for status in statuses:
                removed[status] = removed.get(status, 0) + 1
        return dict(sorted(removed.items()))

    def _parts(self, before: datetime) -> Iterator[list[str]]:
        """Removes in parts; the statuses of what went with each."""
        with self._reading() as session:
            ids = session.scalars(select(JobRow.id).where(_is_old(before)).order_by(JobRow.number)).all()
        for start in range(0, len(ids), _AT_ONCE):
            with self._writing() as session:
                # A retry that came in between made it a queued one, or waits for this and finds none.
                still = select(JobRow.id, JobRow.status).where(JobRow.id.in_(ids[start : start + _AT_ONCE]))
                going = session.execute(still.where(_is_old(before)).with_for_update()).all()
                names = [row.id for row in going]
                session.execute(delete(JobEventRow).where(JobEventRow.job_id.in_(names)))
                session.execute(delete(JobRow).where(JobRow.id.in_(names)))
            yield [row.status for row in going]


def _is_old(before: datetime) -> ColumnElement[bool]:
    return and_(JobRow.status.in_(_ENDED), JobRow.finished_at < before)
