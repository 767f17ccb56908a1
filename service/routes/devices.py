"""The device catalogue."""

from fastapi import APIRouter

from pruning.devices import DEVICES
from service.dependencies import DEFAULT_LIMIT, Limit, Offset
from service.openapi import problems
from service.pagination import page_of
from service.schemas import DeviceResponse, Page

router = APIRouter(prefix="/v1/devices", tags=["devices"])


@router.get("", summary="List the devices", responses=problems(422))
async def list_devices(limit: Limit = DEFAULT_LIMIT, offset: Offset = 0) -> Page[DeviceResponse]:
    """Hardware that a plan request can name."""
    items, place = page_of(list(DEVICES.values()), limit=limit, offset=offset, path="/v1/devices")
    return Page[DeviceResponse](items=[DeviceResponse.of(device) for device in items], **place)
