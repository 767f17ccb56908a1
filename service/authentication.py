"""Who may do what: every request is from somebody, or refused before anything else looks at it."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pruning.errors import AccessError, LopError, ScopeError
from service.keys import KeyRing
from service.page.paths import is_open, is_page
from service.page.session import key_of
from service.problems import headers_of, problem_of, problem_response
from service.root_path import own_path
from storage.records import KeyScope

OPEN = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
"""What needs no key: whether the server is well, and how it is asked."""
_READS = ("GET", "HEAD", "OPTIONS")
_PLANS = "/v1/plans"


def needed_scope(method: str, path: str) -> KeyScope | None:
    """What a request takes; None: nothing. Whatever is not named here takes `run`, so that nothing is forgotten."""
    if path in OPEN or is_open(path):
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
        path = own_path(scope) if scope["type"] == "http" else ""
        needed = needed_scope(scope["method"], path) if path else None
        if needed is None:
            await self.app(scope, receive, send)
            return
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        if not sent and (is_page(path) or scope["method"] in _READS) and (key := key_of(scope)) is not None:
            sent = [f"Bearer {key}"]  # what else a cookie could do, the forms of pages do, which other sites cannot
        try:
            asker = self.ring.known(sent)
            if asker is None:
                asker = await run_in_threadpool(self.ring.find, sent)
            asker.check(needed)
        except LopError as error:
            response = _refusal(scope, error, as_page=is_page(path))
            if scope["method"] not in _READS:  # what there is of a body is not read: the connection cannot go on
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        await self.app({**scope, "lop.asker": asker}, receive, send)


def _refusal(scope: Scope, error: LopError, *, as_page: bool) -> Response:
    problem = problem_of(error, scope["path"])
    if not as_page:
        return problem_response(problem, headers_of(error))
    from service.page.rendering import problem_page, to_login

    request = Request(scope)
    if isinstance(error, AccessError) and not isinstance(error, ScopeError) and scope["method"] in _READS:
        return to_login(request)
    return problem_page(request, problem, headers_of(error))
