"""Searches in SQL: rows that workers claim with one conditional UPDATE."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Select, Update, and_, func, literal, or_, select, update
from sqlalchemy.orm import Session

from pruning.errors import InputError
from pruning.planning.space import Space
from storage.contract import Jobs
from storage.documents import json_document
from storage.records import SearchRecord, SearchStatus
from storage.rows import search_record
from storage.sql_store import SqlStore, require, require_model
from storage.tables import SearchRow, UtcDateTime

_VALIDATION = "validation"


class SearchStore(SqlStore, Jobs):
    """`storage.contract.Jobs` in SQL."""

    def add_search(self, model_id: str, settings: dict[str, Any], *, space: Space | None = None) -> SearchRecord:
        document = json_document(settings, "the settings of a search")
        with self._writing() as session:
            require_model(session, model_id)
            return _insert(
                session, model_id=model_id, settings=document, status=SearchStatus.QUEUED, space=_document_of(space)
            )

    def record_search(
        self,
        model_id: str,
        settings: dict[str, Any],
        result: dict[str, Any],
        *,
        space: Space | None = None,
        validation: dict[str, Any] | None = None,
    ) -> SearchRecord:
        document = json_document(settings, "the settings of a search")
        outcome = json_document(result, "the result of a search")
        says = {} if validation is None else {_VALIDATION: json_document(validation, "the validation of a search")}
        searched = _document_of(space)
        with self._writing() as session:
            require_model(session, model_id, lock=True)  # equal searches that end at once are recorded in turn
            for row in session.scalars(_searches(model_id, SearchStatus.DONE)):
                if row.settings != document or _unvalidated(row.result) != outcome:
                    continue
                if None not in (row.space, searched) and row.space != searched:
                    continue
                known = _validation_of(row.result)
                if (says or known, searched or row.space) == (known, row.space):
                    return search_record(row)
                says, searched = says or known, searched or row.space
                session.delete(row)
                session.flush()
                break
            return _insert(
                session,
                model_id=model_id,
                settings=document,
                status=SearchStatus.DONE,
                result=outcome | says,
                space=searched,
            )

    def get_search(self, search_id: str) -> SearchRecord:
        with self._reading() as session:
            row = session.scalars(select(SearchRow).where(SearchRow.id == search_id)).one_or_none()
            return search_record(require(row, "search", search_id, "List the searches with `lop queue`"))

    def list_searches(self, *, model_id: str | None = None, status: SearchStatus | None = None) -> list[SearchRecord]:
        with self._reading() as session:
            return [search_record(row) for row in session.scalars(_searches(model_id, status))]

    def list_search_ids(self, model_id: str, status: SearchStatus) -> tuple[str, ...]:
        query = select(SearchRow.id).where(SearchRow.model_id == model_id, SearchRow.status == status)
        with self._reading() as session:
            return tuple(session.scalars(query.order_by(SearchRow.number)))

    def claim_search(self, worker: str, *, stale_after: timedelta) -> SearchRecord | None:
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
        return self._change(self._owned(search_id, worker).values(heartbeat_at=self._now()))

    def finish_search(
        self,
        search_id: str,
        worker: str,
        *,
        result: dict[str, Any] | None = None,
        error: str | None = None,
        space: Space | None = None,
    ) -> bool:
        outcome = None if result is None else json_document(result, "the result of a search")
        status = SearchStatus.DONE if error is None else SearchStatus.FAILED
        values = {"status": status, "result": outcome, "error": error}
        if space is not None:
            values["space"] = _document_of(space)
        return self._change(self._owned(search_id, worker).values(values))

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


def _searches(model_id: str | None, status: SearchStatus | None) -> Select[SearchRow]:
    query = select(SearchRow).order_by(SearchRow.number)
    if model_id is not None:
        query = query.where(SearchRow.model_id == model_id)
    return query if status is None else query.where(SearchRow.status == status)


def _unvalidated(result: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (result or {}).items() if key != _VALIDATION}


def _validation_of(result: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (result or {}).items() if key == _VALIDATION}


def _document_of(space: Space | None) -> dict[str, Any] | None:
    return None if space is None else space.document()


def _insert(session: Session, **values: Any) -> SearchRecord:
    row = SearchRow(id=uuid.uuid4().hex, created_at=datetime.now(UTC), **values)
    session.add(row)
    session.flush()
    return search_record(row)
