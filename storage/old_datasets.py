"""Data sets that were handed in long ago and that no job needs any more: records, and content in the data store."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, text

from pruning.errors import InputError
from storage.data_store import DataStore
from storage.maintenance import MaintenanceStore
from storage.records import JobStatus
from storage.tables import DatasetRow, JobRow


@dataclass(frozen=True, slots=True)
class OldDatasets:
    """Of data sets that were handed in before a moment.

    Attributes:
        count: those that no job needs.
        size_bytes: of their content.
        needed: more that stay all the same, since jobs name them that wait, run, or may be asked for again.
    """

    count: int
    size_bytes: int
    needed: int


def old_datasets(url: str, before: datetime) -> OldDatasets:
    """Those of the database at `url` from before `before`, which has a time zone.

    Raises SchemaRevisionError, StorageUnavailableError: it is at another revision, or cannot be read.
    """
    with _Store.open(url) as database:
        return database.count(before)


def remove_old_datasets(url: str, store: DataStore, before: datetime) -> OldDatasets:
    """Remove what `old_datasets` tells, with its content in `store`, and return what went. Killed, run it again.

    Servers and workers go on. Raises as `old_datasets`; InputError if `store` holds none of the database's data sets,
    and so is another's; DataStoreUnavailableError: what went before is gone.
    """
    with _Store.open(url) as database:
        return database.remove(store, before)


class _Store(MaintenanceStore):
    """The data sets of one database."""

    def count(self, before: datetime) -> OldDatasets:
        total = select(func.count(), func.coalesce(func.sum(DatasetRow.size_bytes), 0)).select_from(DatasetRow)
        with self._reading() as session:
            count, size = session.execute(total.where(_is_old(before))).one()
            kept = select(func.count()).select_from(DatasetRow).where(DatasetRow.created_at < before, _is_needed())
            return OldDatasets(int(count), int(size), session.scalar(kept) or 0)

    def remove(self, store: DataStore, before: datetime) -> OldDatasets:
        count = size = 0
        with self._reading() as session:
            ids = session.scalars(select(DatasetRow.id).where(_is_old(before)).order_by(DatasetRow.created_at)).all()
            known = session.scalars(select(DatasetRow.id)).all() if ids else []
        if known and not any(store.has(dataset_id) for dataset_id in known):
            raise InputError(
                "the data store must be the one that servers and workers use",
                values=f"none of the {len(known)} data sets of the database is in it",
                remedy="Give it as they have it: --store or LOP_DATA_STORE",
            )
        for dataset_id in ids:
            with self._writing() as session:
                if self._is_postgresql:  # one writer at a time, as in SQLite
                    session.execute(text(f"LOCK TABLE {DatasetRow.__tablename__} IN SHARE ROW EXCLUSIVE MODE"))
                # A job that was added meanwhile keeps it. Who hands it in again has its record before this, or after:
                # then the content that was there has gone, and is stored again (`DatasetShelf`).
                still = select(DatasetRow.size_bytes).where(DatasetRow.id == dataset_id, _is_old(before))
                found = session.scalar(still)
                if found is None:
                    continue
                store.remove(dataset_id)  # first: a record that is left by a kill is found, and removed, again
                session.execute(delete(DatasetRow).where(DatasetRow.id == dataset_id))
            count, size = count + 1, size + found
        return OldDatasets(count, size, self.count(before).needed)


_NAMES: Final = ("dataset", "selection", "validation", "reconstruct")
"""Settings of jobs that may name a data set."""


def _is_needed() -> ColumnElement[bool]:
    """Whether a job names the data set that waits, runs, or may be asked for again (`Jobs.retry_job`)."""
    named = [JobRow.settings[name].as_string() == DatasetRow.id for name in _NAMES]
    return select(JobRow.number).where(JobRow.status != JobStatus.DONE, or_(*named)).exists()


def _is_old(before: datetime) -> ColumnElement[bool]:
    return and_(DatasetRow.created_at < before, ~_is_needed())
