"""The API reference, to try: Swagger UI, which comes with this package, over the OpenAPI document."""

from fastapi import APIRouter, Request, Response

from service.page.rendering import PageRoute, reference_page

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/docs")
def show_reference(request: Request) -> Response:
    """For everybody, as the document itself."""
    return reference_page(request)
