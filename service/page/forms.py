"""Forms that change something: read, and refused unless they come from a page of ours."""

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from pruning.errors import InputError
from service.page.session import TOKEN_FIELD, is_own, session_of

_FORM = "application/x-www-form-urlencoded"
_OWN_SITES = ("same-origin", "none")


class ForeignFormError(InputError):
    """A form that no page of ours has sent."""


async def _fields(request: Request) -> dict[str, str]:
    """Raises ForeignFormError for a form of another site, InputError for what is no form."""
    site = request.headers.get("sec-fetch-site", "none")
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != _FORM:
        raise InputError("a form is sent as a browser sends it", values=declared[:80] or "no Content-Type")
    try:
        sent = parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError as error:
        raise InputError("a form has at most 50 fields, of text", values=type(error).__name__) from error
    fields = dict(sent)
    if site not in _OWN_SITES or not is_own(session_of(request.scope), fields.pop(TOKEN_FIELD, "")):
        raise ForeignFormError(
            "a form must come from a page that this server sent to this browser",
            values=f"from {site}" if site not in _OWN_SITES else "another token",
            remedy="Load the page again, with cookies allowed, and send it once more",
        )
    return fields


FormDep = Annotated[dict[str, str], Depends(_fields)]
