"""Devices where they are kept: in a database, or on a server. The two answer alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from lop.client import Client
from pruning.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from pruning.devices.profile import DeviceProfile
    from storage.contract import Catalogue


class Devices(Protocol):
    """The catalogue, and what was measured and registered; devices are the documents of the HTTP API."""

    def all(self) -> list[dict[str, Any]]:
        """Every device, without its profile."""
        ...

    def get(self, device_id: str) -> dict[str, Any]:
        """One device, with its profile; raises NotFoundError."""
        ...

    def register(self, profile: "DeviceProfile") -> None:
        """From now on what answers under its id."""
        ...


@dataclass(frozen=True)
class DatabaseDevices:
    """Devices of a database."""

    repository: "Catalogue"

    def all(self) -> list[dict[str, Any]]:
        from service.devices import list_devices
        from service.schemas import DeviceResponse

        return [DeviceResponse.of(device).model_dump(mode="json") for device in list_devices(self.repository)]

    def get(self, device_id: str) -> dict[str, Any]:
        from service.devices import find_device
        from service.schemas import DeviceDetails

        return DeviceDetails.of(find_device(self.repository, device_id)).model_dump(mode="json")

    def register(self, profile: "DeviceProfile") -> None:
        from storage.records import DeviceRecord

        self.repository.add_device(DeviceRecord(profile, datetime.now(UTC)))


@dataclass(frozen=True)
class ServerDevices:
    """Devices of a server."""

    client: Client

    def all(self) -> list[dict[str, Any]]:
        return self.client.devices()

    def get(self, device_id: str) -> dict[str, Any]:
        return self.client.device(device_id)

    def register(self, profile: "DeviceProfile") -> None:
        self.client.register_device(profile.model_dump(mode="json"))


@contextmanager
def open_devices(url: str | None, database: str | None) -> Iterator[DatabaseDevices | ServerDevices]:
    """The devices of the server at `url`, or else of a database (None: LOP_DATABASE_URL or its default)."""
    if url is not None and database is not None:
        raise InputError("devices are those of a server or of a database", values=f"--url {url} and --database")
    if url is not None:
        with Client(url) as client:
            yield ServerDevices(client)
        return
    from service.settings import load_settings
    from storage.sql_repository import open_repository

    with open_repository(load_settings(database_url=database).database_url) as repository:
        yield DatabaseDevices(repository)


def find_profile(devices: Devices, device_id: str) -> "DeviceProfile | None":
    """What was measured of this device; None if nothing was, or there is no such device."""
    try:
        document = devices.get(device_id)["profile"]
    except NotFoundError:
        return None
    return None if document is None else profile_of(document)


def profile_of(document: dict[str, Any]) -> "DeviceProfile":
    """The profile of a device's document; raises InputError if it is not one of this version."""
    import json

    from pruning.devices.profile import parse_profile

    return parse_profile(json.dumps(document), stored=True)
