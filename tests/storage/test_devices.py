"""Device profiles: the newest of an id answers, older ones are kept, and the catalogue's ids are taken."""

import dataclasses
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from pruning.errors import ConflictError, NotFoundError
from storage.records import DeviceRecord
from storage.sql_repository import SqlRepository
from storage.tables import DeviceRow
from tests.pruning.made_up_devices import made_up_profile
from tests.storage.examples import MORNING

LATER = MORNING + timedelta(hours=1)


def test_a_profile_round_trips_exactly(repository: SqlRepository) -> None:
    record = DeviceRecord(made_up_profile("bench"), MORNING)
    assert record.id == "bench"
    assert repository.add_device(record) == record
    assert repository.get_device("bench") == record
    assert repository.list_devices() == [record]


def test_an_equal_profile_is_stored_once(repository: SqlRepository) -> None:
    record = repository.add_device(DeviceRecord(made_up_profile("bench"), MORNING))
    assert repository.add_device(dataclasses.replace(record, created_at=LATER)) == record
    assert number_of_rows(repository) == 1


def test_the_newest_of_an_id_answers_and_the_older_ones_are_kept(repository: SqlRepository) -> None:
    first = repository.add_device(DeviceRecord(made_up_profile("one", layer_ms=1.0), MORNING))
    other = repository.add_device(DeviceRecord(made_up_profile("two"), MORNING))
    # Registered later, measured earlier: what was registered last counts.
    again = repository.add_device(DeviceRecord(made_up_profile("one", layer_ms=2.0), MORNING - timedelta(days=1)))
    assert repository.get_device("one") == again
    assert repository.list_devices() == [again, other]
    assert repository.list_device_ids() == ("one", "two")
    number = repository.latest_device_number("one")
    assert repository.latest_device_number("one") == number != repository.latest_device_number("two")
    back = repository.add_device(dataclasses.replace(first, created_at=LATER))
    assert repository.get_device("one") == back
    assert repository.latest_device_number("one") != number
    assert number_of_rows(repository) == 4


def test_ids_are_listed_without_reading_a_profile(repository: SqlRepository) -> None:
    assert repository.list_device_ids() == ()
    for name in ("b", "c", "a", "c"):
        repository.add_device(DeviceRecord(made_up_profile(name), MORNING))
    with repository._writing() as session:
        session.execute(update(DeviceRow).values(profile={}))  # what no reader of profiles gets past
    assert repository.list_device_ids() == ("b", "c", "a")


def test_the_catalogue_keeps_its_ids(repository: SqlRepository) -> None:
    with pytest.raises(ConflictError, match=r"must not be one of the catalogue.*'l4'.*another id"):
        repository.add_device(DeviceRecord(made_up_profile("l4"), MORNING))
    assert repository.list_devices() == []


def test_an_unknown_id_is_not_found(repository: SqlRepository) -> None:
    with pytest.raises(NotFoundError, match=r"'toaster'.*lop device profile"):
        repository.get_device("toaster")
    with pytest.raises(NotFoundError, match=r"'toaster'.*lop device profile"):
        repository.latest_device_number("toaster")


def number_of_rows(repository: SqlRepository) -> int:
    with repository._reading() as session:
        return session.scalars(select(func.count()).select_from(DeviceRow)).one()
