"""Who may do what: every request is from somebody, or refused before anything else looks at it."""

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from pruning.errors import LopError
from service.keys import KeyRing
from service.problems import headers_of, problem_of, problem_response
from service.root_path import own_path
from storage.records import KeyScope

OPEN = frozenset({"/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""What needs no key: whether the server is well, and how it is asked."""
_READS = ("GET", "HEAD", "OPTIONS")
_PLANS = "/v1/plans"


def needed_scope(method: str, path: str) -> KeyScope | None:
    """What a request takes; None: nothing. Whatever is not named here takes `run`, so that nothing is forgotten."""
    if path in OPEN:
        return None
    if method in _READS:
        return KeyScope.READ
    return KeyScope.PLAN if (method, path) == ("POST", _PLANS) else KeyScope.RUN


class Authentication:
    """ASGI middleware: puts the `service.keys.Asker` of a request into its scope, as "lop.asker"; or answers 401, 403,
    429."""

    def __init__(self, app: ASGIApp, *, ring: KeyRing) -> None:
        self.app = app
        self.ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        needed = needed_scope(scope["method"], own_path(scope)) if scope["type"] == "http" else None
        if needed is None:
            await self.app(scope, receive, send)
            return
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        try:
            asker = self.ring.known(sent)
            if asker is None:
                asker = await run_in_threadpool(self.ring.find, sent)
            asker.check(needed)
        except LopError as error:
            response = problem_response(problem_of(error, scope["path"]), headers_of(error))
            if scope["method"] not in _READS:  # what there is of a body is not read: the connection cannot go on
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        await self.app({**scope, "lop.asker": asker}, receive, send)
