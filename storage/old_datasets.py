"""Data sets that were handed in long ago and that no job needs any more: records, and content in the data store."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, text

from storage.data_store import DataStore
from storage.maintenance import MaintenanceStore
from storage.records import JobStatus
from storage.tables import DatasetRow, JobRow


@dataclass(frozen=True, slots=True)
class OldDatasets:
    """Of data sets that were last handed in before a moment.

    Attributes:
        count: those that no job needs.
        size_bytes: of their content.
        needed: more that stay all the same, since jobs name them that wait, run, or may be asked for again.
        absent: more whose content is not in the data store, which may be the wrong one; they stay unless asked for.
    """

    count: int
    size_bytes: int
    needed: int
    absent: int


def old_datasets(url: str, store: DataStore, before: datetime) -> OldDatasets:
    """Those of the database at `url`, with their content in `store`, from before `before`, which has a time zone.

    Raises SchemaRevisionError, StorageUnavailableError: one of the two cannot be read, or is at another revision.
    """
    with _Store.open(url) as database:
        return database.go_through(store, before, remove=False, absent=False)


def remove_old_datasets(url: str, store: DataStore, before: datetime, *, absent: bool = False) -> OldDatasets:
    """Remove what `old_datasets` tells, with its content, and return what went; with `absent`, records without content
    too, as a removal that was killed may leave one.

    Servers and workers go on. Raises as `old_datasets`: what went before is gone.
    """
    with _Store.open(url) as database:
        return database.go_through(store, before, remove=True, absent=absent)


class _Store(MaintenanceStore):
    """The data sets of one database."""

    def go_through(self, store: DataStore, before: datetime, *, remove: bool, absent: bool) -> OldDatasets:
        with self._reading() as session:
            old = session.scalars(select(DatasetRow.id).where(_is_old(before)).order_by(DatasetRow.created_at)).all()
            needed = select(func.count()).select_from(DatasetRow).where(DatasetRow.created_at < before, _is_needed())
            num_needed = session.scalar(needed) or 0
        count = size = num_absent = 0
        for dataset_id in old:
            with self._writing() if remove else self._reading() as session:
                if remove and self._is_postgresql:  # one writer at a time, as in SQLite
                    session.execute(text(f"LOCK TABLE {DatasetRow.__tablename__} IN SHARE ROW EXCLUSIVE MODE"))
                still = select(DatasetRow.size_bytes).where(DatasetRow.id == dataset_id, _is_old(before))
                found, stored = session.scalar(still), store.stored_at(dataset_id)
                if found is None or (stored is not None and stored >= before):
                    continue  # it was handed in again, and its record has kept its date
                if stored is None and not absent:
                    num_absent += 1
                    continue
                if remove:
                    # Content goes first: a record without it, which a kill leaves, can be found. Who hands it in again
                    # has the record after this, and stores the content again (`DatasetShelf`). A job that is added in
                    # this very moment fails, says why, and can be retried once the data set was handed in again.
                    store.remove(dataset_id)
                    session.execute(delete(DatasetRow).where(DatasetRow.id == dataset_id))
            count, size = count + 1, size + found
        return OldDatasets(count, size, num_needed, num_absent)


_NAMES: Final = ("dataset", "selection", "validation", "reconstruct")
"""Settings of jobs that may name a data set."""


def _is_needed() -> ColumnElement[bool]:
    """Whether a job names the data set that waits, runs, or may be asked for again (`Jobs.retry_job`)."""
    named = [JobRow.settings[name].as_string() == DatasetRow.id for name in _NAMES]
    return select(JobRow.number).where(JobRow.status != JobStatus.DONE, or_(*named)).exists()


def _is_old(before: datetime) -> ColumnElement[bool]:
    return and_(DatasetRow.created_at < before, ~_is_needed())
