"""The devices that a request can name: those of the catalogue, and those that were measured and registered."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device, profiled_device
from pruning.devices.latency import latency_model
from pruning.errors import NotFoundError
from pruning.planning.latency_model import LatencyModel
from service.lru_cache import LruCache
from storage.contract import Catalogue

if TYPE_CHECKING:
    from mcts.targets import LatencyTargets

# A profile of the largest size takes a few megabytes when it is read.
_MAX_CACHED_PROFILES = 8
# Anyone may register devices: what is said of an id that is unknown has a length that does not grow with them.
_MAX_NAMED_DEVICES = 20


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device, and the sha256 of its profile's content, if it was measured."""

    device: Device
    profile_sha256: str | None


class DeviceFinder:
    """Finds devices by id; a measured one is read again only after another profile was registered. Thread-safe."""

    def __init__(self, repository: Catalogue) -> None:
        self._repository = repository
        self._measured: LruCache[tuple[str, int], KnownDevice] = LruCache(_MAX_CACHED_PROFILES)

    def find(self, device_id: str) -> KnownDevice:
        """The device of this id, with its profile if it was registered; raises NotFoundError that names some ids."""
        if device_id in DEVICES:
            return KnownDevice(DEVICES[device_id], None)
        try:
            number = self._repository.latest_device_number(device_id)
            return self._measured.get((device_id, number), lambda: self._read(device_id))
        except NotFoundError:
            raise _unknown(self._repository, device_id) from None

    def _read(self, device_id: str) -> KnownDevice:
        profile = self._repository.get_device(device_id).profile
        return KnownDevice(profiled_device(profile), hashlib.sha256(profile.model_dump_json().encode()).hexdigest())


def find_device(repository: Catalogue, device_id: str) -> Device:
    """The device of this id, for who asks once; raises NotFoundError as `DeviceFinder.find`."""
    return DeviceFinder(repository).find(device_id).device


def priced(repository: Catalogue, anatomy: ModelAnatomy, targets: "LatencyTargets | None") -> LatencyModel | None:
    """What prices the workload of `targets` on their device, if there are some; raises NotFoundError for a device that
    nobody registered."""
    if targets is None:
        return None
    return latency_model(find_device(repository, targets.device), anatomy, targets.workload)


def list_devices(repository: Catalogue) -> list[Device]:
    """The catalogue, then what was registered, oldest first."""
    return [*DEVICES.values(), *(profiled_device(record.profile) for record in repository.list_devices())]


def _unknown(repository: Catalogue, device_id: str) -> NotFoundError:
    """Names some ids: the latest that were registered, then the catalogue's."""
    known = [*reversed(repository.list_device_ids()), *DEVICES]
    named, unnamed = known[:_MAX_NAMED_DEVICES], len(known[_MAX_NAMED_DEVICES:])
    more = f" and {unnamed} more, see `lop device list`" if unnamed else ""
    return NotFoundError(
        "the device must be in the catalogue or registered",
        values=repr(device_id),
        remedy=f"Known devices: {', '.join(named)}{more}. Register others with `lop device profile`",
    )
