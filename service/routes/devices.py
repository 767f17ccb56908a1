"""Devices: the catalogue, and profiles that were measured."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response, status

from pruning.devices.device import profiled_device
from pruning.devices.profile import DeviceProfile
from service import devices
from service.dependencies import DEFAULT_LIMIT, CatalogueDep, DeviceId, Limit, Offset
from service.openapi import problems
from service.pagination import page_of
from service.request_limits import JsonBodyRoute
from service.root_path import seen_from_outside
from service.schemas import DeviceDetails, DeviceResponse, Page
from storage.records import DeviceRecord

router = APIRouter(prefix="/v1/devices", tags=["devices"], route_class=JsonBodyRoute)
reading = APIRouter(prefix="/v1/devices", tags=["devices"])

_LOCATION = {"Location": {"description": "Path of the device.", "schema": {"type": "string"}}}


@router.post(
    "",
    summary="Register a measured device",
    status_code=status.HTTP_201_CREATED,
    responses={
        201: {"description": "The device, as it is stored.", "headers": _LOCATION},
        **problems(409, 413, 415, 422, 503),
    },
)
def register_device(
    profile: DeviceProfile, repository: CatalogueDep, request: Request, response: Response
) -> DeviceDetails:
    """A profile that `lop device profile` measured. From now on requests that name its `id` are priced by it; a later
    profile of the same id takes its place. The ids of the catalogue are taken.
    """
    record = repository.add_device(DeviceRecord(profile, datetime.now(UTC)))
    response.headers["Location"] = seen_from_outside(request, f"/v1/devices/{record.id}")
    return DeviceDetails.of(profiled_device(record.profile))


@reading.get("", summary="List the devices", responses=problems(422, 503))
def list_devices(
    repository: CatalogueDep, request: Request, limit: Limit = DEFAULT_LIMIT, offset: Offset = 0
) -> Page[DeviceResponse]:
    """Hardware that a plan request can name: the catalogue first, then what was registered, oldest first."""
    path = seen_from_outside(request, "/v1/devices")
    items, place = page_of(devices.list_devices(repository), limit=limit, offset=offset, path=path)
    return Page[DeviceResponse](items=[DeviceResponse.of(device) for device in items], **place)


@reading.get("/{device_id}", summary="Read a device", responses=problems(404, 422, 503))
def read_device(device_id: DeviceId, repository: CatalogueDep) -> DeviceDetails:
    """One device: its figures, and its profile if it was measured."""
    return DeviceDetails.of(devices.find_device(repository, device_id))
