"""Keys in SQL: their salted hashes, and what they may do."""

from datetime import UTC, datetime

from sqlalchemy import select, update

from storage.contract import Keys
from storage.records import KeyRecord
from storage.rows import column_values, key_record
from storage.sql_store import SqlStore, conflict, require
from storage.tables import KeyRow


class KeyStore(SqlStore, Keys):
    """`storage.contract.Keys` in SQL."""

    def add_key(self, key: KeyRecord) -> KeyRecord:
        with self._writing() as session:
            if not self._insert_new(session, KeyRow, [column_values(key)]):
                raise conflict("key", key.id, "another key")
            return key

    def find_key(self, key_id: str) -> KeyRecord | None:
        with self._reading() as session:
            row = session.get(KeyRow, key_id)
            return None if row is None else key_record(row)

    def list_keys(self) -> list[KeyRecord]:
        query = select(KeyRow).order_by(KeyRow.created_at, KeyRow.id)
        with self._reading() as session:
            return [key_record(row) for row in session.scalars(query)]

    def has_keys(self) -> bool:
        with self._reading() as session:
            return session.scalar(select(KeyRow.id).limit(1)) is not None

    def revoke_key(self, key_id: str) -> KeyRecord:
        with self._writing() as session:
            row = require(session.get(KeyRow, key_id), "key", key_id, "List the keys with `lop key list`")
            if row.revoked_at is None:
                row.revoked_at = datetime.now(UTC)
            return key_record(row)

    def note_key_use(self, key_id: str, at: datetime) -> None:
        with self._writing() as session:
            session.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used_at=at))
