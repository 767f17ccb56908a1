"""Searches in SQL: rows that workers claim with one conditional UPDATE."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Update, and_, func, literal, or_, select, update

from pruning.errors import InputError
from storage.documents import json_document
from storage.records import SearchRecord, SearchStatus
from storage.rows import search_record
from storage.sql_store import SqlStore, require, require_model
from storage.tables import SearchRow, UtcDateTime


class SearchStore(SqlStore):
    """The search methods of `storage.contract.Repository`."""

    def add_search(self, model_id: str, settings: dict[str, Any]) -> SearchRecord:
        """Queue a search. Raises NotFoundError for an unknown model, InputError for settings that are not JSON."""
        values = {
            "id": uuid.uuid4().hex,
            "model_id": model_id,
            "settings": json_document(settings, "the settings of a search"),
            "status": SearchStatus.QUEUED,
            "created_at": datetime.now(UTC),
        }
        with self._writing() as session:
            require_model(session, model_id)
            row = SearchRow(**values)
            session.add(row)
            session.flush()
            return search_record(row)

    def get_search(self, search_id: str) -> SearchRecord:
        """The search as it is now; raises NotFoundError."""
        with self._reading() as session:
            row = session.scalars(select(SearchRow).where(SearchRow.id == search_id)).one_or_none()
            return search_record(require(row, "search", search_id, "List the searches with `lop queue`"))

    def list_searches(self, *, status: SearchStatus | None = None) -> list[SearchRecord]:
        """All searches, oldest first."""
        query = select(SearchRow).order_by(SearchRow.number)
        if status is not None:
            query = query.where(SearchRow.status == status)
        with self._reading() as session:
            return [search_record(row) for row in session.scalars(query)]

    def claim_search(self, worker: str, *, stale_after: timedelta) -> SearchRecord | None:
        """Make the oldest queued search (or running one without a heartbeat for `stale_after`) this worker's own.

        Of several workers that claim at once, exactly one gets a given search. None if there is nothing to do.
        """
        if stale_after < timedelta(0):
            raise InputError("stale_after must not be negative", values=repr(stale_after))
        now = self._now()
        claimable = or_(
            SearchRow.status == SearchStatus.QUEUED,
            and_(SearchRow.status == SearchStatus.RUNNING, SearchRow.heartbeat_at <= self._now(-stale_after)),
        )
        # SKIP LOCKED: a worker takes the next search instead of waiting for the one that another is just taking.
        # SQLite has no such clause, and needs none: the whole statement runs under its one write lock.
        oldest = (
            select(SearchRow.number)
            .where(claimable)
            .order_by(SearchRow.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        claim = (
            update(SearchRow)
            .where(SearchRow.number == oldest, claimable)
            .values(status=SearchStatus.RUNNING, worker=worker, heartbeat_at=now)
            .returning(SearchRow)
            .execution_options(synchronize_session=False)
        )
        with self._writing() as session:
            row = session.scalars(claim).one_or_none()
            return None if row is None else search_record(row)

    def heartbeat(self, search_id: str, worker: str) -> bool:
        """Say that the search is still worked on; False if it is no longer this worker's."""
        return self._change(self._owned(search_id, worker).values(heartbeat_at=self._now()))

    def finish_search(
        self, search_id: str, worker: str, *, result: dict[str, Any] | None = None, error: str | None = None
    ) -> bool:
        """Mark it done (or failed, with `error`); False, and no change, if it is no longer this worker's."""
        outcome = None if result is None else json_document(result, "the result of a search")
        status = SearchStatus.DONE if error is None else SearchStatus.FAILED
        return self._change(self._owned(search_id, worker).values(status=status, result=outcome, error=error))

    def _owned(self, search_id: str, worker: str) -> Update:
        return update(SearchRow).where(
            SearchRow.id == search_id, SearchRow.worker == worker, SearchRow.status == SearchStatus.RUNNING
        )

    def _change(self, statement: Update) -> bool:
        with self._writing() as session:
            result = session.execute(statement.execution_options(synchronize_session=False))
            return cast("CursorResult[Any]", result).rowcount == 1

    def _now(self, offset: timedelta = timedelta(0)) -> ColumnElement[datetime]:
        """The database's clock: workers on several machines share a server, and their own clocks may differ."""
        if self._is_postgresql:
            return func.clock_timestamp(type_=UtcDateTime) + literal(offset)
        return literal(datetime.now(UTC) + offset, UtcDateTime())  # a SQLite file lives on one machine
