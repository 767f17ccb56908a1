"""Logging in with a key, and out."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from pruning.errors import AccessError
from service.dependencies import KeyRingDep
from service.page import session
from service.page.forms import FormDep
from service.page.paths import LOGIN, is_page
from service.page.rendering import PageRoute, login_page
from service.problems import problem_of
from service.root_path import seen_from_outside

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get(LOGIN)
def ask_for_key(request: Request, next_page: Annotated[str, Query(alias="next", max_length=4000)] = "/") -> Response:
    """The form."""
    return login_page(request, next_page=_own(next_page))


@router.post(LOGIN)
def log_in(request: Request, form: FormDep, ring: KeyRingDep) -> Response:
    """Keep the key in a cookie, if it is good, and show what was asked for."""
    key, next_page = form.get("key", "").strip(), _own(form.get("next", "/"))
    try:
        ring.find([f"Bearer {key}"])
    except AccessError as error:
        return login_page(request, next_page=next_page, problem=problem_of(error, LOGIN))
    response = RedirectResponse(seen_from_outside(request, next_page), status_code=303)
    if not ring.is_open:  # where nobody needs a key, none is kept
        session.keep(response, request, key)
    return response


@router.post("/logout")
def log_out(request: Request, _form: FormDep) -> Response:
    """Forget the key."""
    response = RedirectResponse(seen_from_outside(request, LOGIN), status_code=303)
    session.keep(response, request, session.new_session())
    return response


def _own(path: str) -> str:
    """`path`, if it is one of our pages: nobody is led to another site."""
    is_ours = path.startswith("/") and not path.startswith("//") and is_page(path.partition("?")[0])
    return path if is_ours and path.isprintable() and "\\" not in path else "/"
