"""Data sets in SQL: what is known of them; their content is in the data store."""

from sqlalchemy import select

from storage.contract import Datasets
from storage.records import DatasetRecord
from storage.rows import column_values, dataset_record
from storage.sql_store import SqlStore, require
from storage.tables import DatasetRow


class DatasetStore(SqlStore, Datasets):
    """`storage.contract.Datasets` in SQL."""

    def add_dataset(self, dataset: DatasetRecord) -> DatasetRecord:
        with self._writing() as session:
            self._insert_new(session, DatasetRow, [column_values(dataset)])
            return dataset_record(session.get_one(DatasetRow, dataset.id))

    def get_dataset(self, dataset_id: str) -> DatasetRecord:
        with self._reading() as session:
            row = session.get(DatasetRow, dataset_id)
            return dataset_record(require(row, "data set", dataset_id, "Hand it in with POST /v1/datasets"))

    def list_datasets(self) -> list[DatasetRecord]:
        query = select(DatasetRow).order_by(DatasetRow.created_at, DatasetRow.id)
        with self._reading() as session:
            return [dataset_record(row) for row in session.scalars(query)]
