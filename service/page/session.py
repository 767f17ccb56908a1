"""Who looks at the page: a key in a cookie that no script and no other site can use, and tokens for forms.

The cookie holds the key itself, so that every server process knows it, nothing about sessions is stored, and a key that
is revoked opens nothing more. Whoever has no key yet gets a random value, since forms are guarded in any case: a site
that a browser visits could otherwise send them to a server on the same machine that lets everybody in.

A form's token is an HMAC of a constant under the value of the cookie: only who can read the page can know it
(OWASP, "Cross-Site Request Forgery Prevention", signed double-submit cookie bound to the session).
"""

import hashlib
import hmac
import re
import secrets

from fastapi import Request, Response
from starlette.types import Scope

COOKIE = "lop_session"
TOKEN_FIELD = "csrf"
_VALUE = re.compile(r"[A-Za-z0-9_-]{20,100}")
_ANONYMOUS = "nobody_"


def session_of(scope: Scope) -> str | None:
    """The value of the cookie; None without one, or with two that differ: then one of them is not ours."""
    found = set()
    for name, line in scope["headers"]:
        if name != b"cookie":
            continue
        for pair in line.decode("latin-1").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == COOKIE:
                found.add(value)
    [value] = found if len(found) == 1 else [None]
    return value if value is not None and _VALUE.fullmatch(value) else None


def key_of(scope: Scope) -> str | None:
    """The key in the cookie, of a browser that is logged in."""
    session = session_of(scope)
    return None if session is None or session.startswith(_ANONYMOUS) else session


def new_session() -> str:
    """For who has no key, or none yet."""
    return _ANONYMOUS + secrets.token_urlsafe(32)


def token_of(session: str) -> str:
    """What the forms of a page that was sent to this session carry."""
    return hmac.new(session.encode(), b"lop form", hashlib.sha256).hexdigest()


def is_own(session: str | None, token: str) -> bool:
    """Whether a form comes from a page that was sent to this session."""
    return session is not None and hmac.compare_digest(token_of(session).encode(), token.encode())


def keep(response: Response, request: Request, session: str) -> None:
    """Set the cookie, until the browser is closed."""
    response.set_cookie(
        COOKIE,
        session,
        path=request.scope.get("root_path", "") or "/",
        secure=request.scope.get("scheme") == "https",
        httponly=True,
        samesite="strict",
    )
