"""Templates into answers, with the headers that keep other sites and scripts out."""

import json
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined

from pruning.errors import LopError
from service.page import session, wording
from service.page.assets import asset_version
from service.page.paths import LOGIN
from service.problems import headers_of, invalid_request_problem, log_server_error, problem_of
from service.schemas import Problem

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every page: nothing in it is loaded from elsewhere or written inline, and no other site may frame it."""

_NAVIGATION = (
    ("/", "Models"),
    ("/explorer", "Explorer"),
    ("/jobs", "Jobs"),
    ("/compare", "Compare"),
    ("/devices", "Devices"),
)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": wording.in_bytes,
        "count": wording.in_thousands,
        "share": wording.in_percent,
        "flops": wording.in_operations,
        "ms": wording.in_milliseconds,
        "moment": wording.moment,
        "seconds": wording.duration,
        "kl": wording.divergence,
        "path": quote,
        "pretty": lambda document: json.dumps(document, indent=2, ensure_ascii=False),
    }
    return environment


def page(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> Response:
    """The page that `template` makes of `values`; also its own session cookie, where the browser has none."""
    own = session.session_of(request.scope)
    current = own or session.new_session()
    root = request.scope.get("root_path", "")
    text = (
        _environment()
        .get_template(template)
        .render(
            values
            | {
                "root": root,
                "here": request.scope["path"].removeprefix(root),
                "navigation": _NAVIGATION,
                "asker": request.scope.get("lop.asker"),
                "has_key": session.key_of(request.scope) is not None,
                "token": session.token_of(current),
                "asset": _addresses(root),
                "link": lambda path, **query: f"{root}{path}" + (f"?{urlencode(query)}" if query else ""),
            }
        )
    )
    response = HTMLResponse(text, status_code=status, headers={**HEADERS, **(headers or {})})
    if own is None:
        session.keep(response, request, current)
    return response


def _addresses(root: str) -> Callable[[str], str]:
    """Of the files that pages load."""
    return lambda name: f"{root}/assets/{name}?v={asset_version(name)}"


def reference_page(request: Request) -> Response:
    """The API reference: it has no form, so no session."""
    root = request.scope.get("root_path", "")
    text = _environment().get_template("reference.html").render(root=root, asset=_addresses(root))
    return HTMLResponse(text, headers=HEADERS)


def problem_page(request: Request, problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """A problem as a page."""
    return page(request, "problem.html", status=problem.status, headers=headers, problem=problem)


def login_page(request: Request, *, next_page: str, problem: Problem | None = None) -> Response:
    """Where a key is asked for; `next_page` is shown afterwards."""
    status = 200 if problem is None else problem.status
    return page(request, "login.html", status=status, next_page=next_page, problem=problem)


def to_login(request: Request) -> Response:
    """What somebody without a good key gets instead of a page: the way to log in, and back.

    A link from another site is followed without the cookie, which is `SameSite=Strict`: so that a colleague who is
    logged in sees what is linked, the page is asked for once more, from here.
    """
    root = request.scope.get("root_path", "")
    here = request.scope["path"].removeprefix(root)
    query = request.scope.get("query_string", b"").decode("latin-1")
    target = f"{quote(here)}?{query}" if query else quote(here)
    if request.headers.get("sec-fetch-site") == "cross-site" and session.session_of(request.scope) is None:
        # No cookie is set: a new one would take the place of the one that the browser has.
        text = _environment().get_template("again.html").render(target=f"{root}{target}")
        return HTMLResponse(text, headers=HEADERS)
    login = f"{root}{LOGIN}?{urlencode({'next': target})}"
    if request.headers.get("hx-request") == "true":
        return Response(status_code=401, headers={**HEADERS, "HX-Redirect": login})
    return Response(status_code=303, headers={**HEADERS, "Location": login})


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                return await handle(request)
            except LopError as error:
                problem = problem_of(error, request.scope["path"])
                log_server_error(request, problem, error)
                return problem_page(request, problem, headers_of(error))
            except RequestValidationError as error:
                return problem_page(request, invalid_request_problem(request, error))

        return handle_page
