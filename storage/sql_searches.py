"""Finished searches in SQL."""

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, select

from pruning.planning.space import Space
from storage.contract import Searches
from storage.documents import json_document
from storage.records import SearchRecord
from storage.rows import search_record
from storage.sql_store import SqlStore, require_model
from storage.tables import SearchRow

_VALIDATION = "validation"


class SearchStore(SqlStore, Searches):
    """`storage.contract.Searches` in SQL."""

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
        searched = None if space is None else space.document()
        with self._writing() as session:
            require_model(session, model_id, lock=True)  # equal searches that end at once are recorded in turn
            for row in session.scalars(_searches(model_id)):
                if row.settings != document or _unvalidated(row.result) != outcome:
                    continue
                if None not in (row.space, searched) and row.space != searched:
                    continue
                if not says or row.result == outcome | says:
                    return search_record(row)
                searched = searched or row.space
                session.delete(row)
                session.flush()
                break
            row = SearchRow(
                id=uuid.uuid4().hex,
                model_id=model_id,
                settings=document,
                result=outcome | says,
                space=searched,
                created_at=datetime.now(UTC),
            )
            session.add(row)
            session.flush()
            return search_record(row)

    def list_searches(self, model_id: str | None = None) -> list[SearchRecord]:
        with self._reading() as session:
            return [search_record(row) for row in session.scalars(_searches(model_id))]

    def list_search_ids(self, model_id: str) -> tuple[str, ...]:
        query = select(SearchRow.id).where(SearchRow.model_id == model_id).order_by(SearchRow.number)
        with self._reading() as session:
            return tuple(session.scalars(query))


def _searches(model_id: str | None) -> Select[SearchRow]:
    query = select(SearchRow).order_by(SearchRow.number)
    return query if model_id is None else query.where(SearchRow.model_id == model_id)


def _unvalidated(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != _VALIDATION}
