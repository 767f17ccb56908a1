"""Measured devices in SQL: a row for every profile that was ever registered, the newest of an id answers."""

from sqlalchemy import Select, bindparam, func, select

from pruning.devices.catalogue import check_not_in_catalogue
from storage.records import DeviceRecord
from storage.rows import device_record
from storage.sql_store import SqlStore, require
from storage.tables import DeviceRow

_NEWEST_NUMBER = select(func.max(DeviceRow.number)).where(DeviceRow.id == bindparam("device_id"))


class DeviceStore(SqlStore):
    """The devices of `storage.contract.Catalogue` in SQL."""

    def add_device(self, record: DeviceRecord) -> DeviceRecord:
        check_not_in_catalogue(record.id)
        with self._writing() as session:
            newest = session.scalar(_newest(record.id))
            if newest is not None and (stored := device_record(newest)).profile == record.profile:
                return stored
            document = record.profile.model_dump(mode="json")
            session.add(DeviceRow(id=record.id, profile=document, created_at=record.created_at))
        return record

    def get_device(self, device_id: str) -> DeviceRecord:
        with self._reading() as session:
            row = session.scalar(_newest(device_id))
            return device_record(require(row, "device", device_id, "Measure it with `lop device profile`"))

    def latest_device_number(self, device_id: str) -> int:
        number = self._read_one(_NEWEST_NUMBER, device_id=device_id)
        return require(number, "device", device_id, "Measure it with `lop device profile`")

    def list_devices(self) -> list[DeviceRecord]:
        newest = (
            select(func.max(DeviceRow.number).label("number"), func.min(DeviceRow.number).label("first"))
            .group_by(DeviceRow.id)
            .subquery()
        )
        query = select(DeviceRow).join(newest, DeviceRow.number == newest.c.number).order_by(newest.c.first)
        with self._reading() as session:
            return [device_record(row) for row in session.scalars(query)]

    def list_device_ids(self) -> tuple[str, ...]:
        query = select(DeviceRow.id).group_by(DeviceRow.id).order_by(func.min(DeviceRow.number))
        with self._reading() as session:
            return tuple(session.scalars(query))


def _newest(device_id: str) -> Select[DeviceRow]:
    return select(DeviceRow).where(DeviceRow.id == device_id).order_by(DeviceRow.number.desc()).limit(1)
