"""The devices that plans can be made for."""

from fastapi import APIRouter, Request, Response

from service.dependencies import DEFAULT_LIMIT, CatalogueDep, DeviceId, Limit, Offset
from service.page.rendering import PageRoute, page
from service.routes import devices

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/devices")
def list_devices(
    request: Request, catalogue: CatalogueDep, limit: Limit = DEFAULT_LIMIT, offset: Offset = 0
) -> Response:
    """Devices as the API lists them."""
    return page(request, "devices.html", listed=devices.list_devices(catalogue, request, limit, offset))


@router.get("/devices/{device_id}")
def show_device(request: Request, device_id: DeviceId, catalogue: CatalogueDep) -> Response:
    """One device, and what was measured of it."""
    return page(request, "device.html", device=devices.read_device(device_id, catalogue))
