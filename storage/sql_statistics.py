"""Statistics of dense models in SQL: one row a (model, kind, calibration set), its file among the artifacts."""

from sqlalchemy import select

from storage.records import StatisticsRecord
from storage.rows import column_values, statistics_record
from storage.sql_store import SqlStore, conflict, require_artifact, require_calibration, require_model
from storage.tables import StatisticsRow


class StatisticsStore(SqlStore):
    """The statistics of `storage.contract.Catalogue` in SQL."""

    def add_statistics(self, record: StatisticsRecord) -> StatisticsRecord:
        key = (record.model_id, record.kind, record.calibration_id)
        with self._writing() as session:
            require_model(session, record.model_id)
            require_calibration(session, record.calibration_id)
            require_artifact(session, record.sha256)
            self._insert_new(session, StatisticsRow, [column_values(record)])
            stored = statistics_record(session.get_one(StatisticsRow, key))
        if stored.sha256 != record.sha256:
            raise conflict("statistics", ", ".join(key), "another sha256", "Measure on another calibration set")
        return stored

    def list_statistics(self, model_id: str) -> list[StatisticsRecord]:
        query = select(StatisticsRow).where(StatisticsRow.model_id == model_id)
        order = (StatisticsRow.created_at, StatisticsRow.kind, StatisticsRow.calibration_id)
        with self._reading() as session:
            return [statistics_record(row) for row in session.scalars(query.order_by(*order))]

    def latest_statistics(self, model_id: str, kind: str) -> StatisticsRecord | None:
        query = select(StatisticsRow).where(StatisticsRow.model_id == model_id, StatisticsRow.kind == kind).limit(1)
        order = (StatisticsRow.created_at.desc(), StatisticsRow.calibration_id.desc())
        with self._reading() as session:
            row = session.scalar(query.order_by(*order))
            return None if row is None else statistics_record(row)
