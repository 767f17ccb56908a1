"""The devices that a request can name: those of the catalogue, and those that were measured and registered."""

from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device, profiled_device
from pruning.errors import NotFoundError
from storage.contract import Repository


def find_device(repository: Repository, device_id: str) -> Device:
    """The device of this id, its profile attached if it was registered; raises NotFoundError that lists the ids."""
    if device_id in DEVICES:
        return DEVICES[device_id]
    try:
        return profiled_device(repository.get_device(device_id).profile)
    except NotFoundError:
        known = ", ".join(device.id for device in list_devices(repository))
        raise NotFoundError(
            "the device must be in the catalogue or registered",
            values=repr(device_id),
            remedy=f"Known devices: {known}. Register others with `lop device profile`",
        ) from None


def list_devices(repository: Repository) -> list[Device]:
    """The catalogue, then what was registered, oldest first."""
    return [*DEVICES.values(), *(profiled_device(record.profile) for record in repository.list_devices())]
