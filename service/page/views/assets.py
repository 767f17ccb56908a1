"""The files that pages load."""

from fastapi import APIRouter, Response

from service.page.assets import MEDIA_TYPES, asset
from service.page.rendering import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/assets/{name}")
def read_asset(name: str) -> Response:
    """One file; its address changes with its content."""
    content = asset(name)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=MEDIA_TYPES[name], headers=headers)
