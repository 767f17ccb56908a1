"""By which names the server is asked: against DNS rebinding.

A page of another site can have its own name resolve to 127.0.0.1. To the browser it is then the server's own page,
which may read every answer and every form's token. Its requests still say the other site's name in their `Host`. Where
no key keeps anybody out, that name alone tells them from those of whoever is on this machine.

Starlette's TrustedHostMiddleware compares names alike. What it cannot do is leave the rule out once there is a key, and
say what to do in a problem document.
"""

import re
from collections.abc import Collection
from functools import lru_cache
from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from pruning.errors import LopError
from service.keys import KeyRing
from service.names import is_loopback_name
from service.problems import headers_of, plain_problem, problem_of, problem_response
from service.root_path import own_path
from service.schemas import Problem

_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]*)?", re.IGNORECASE)
_REMEMBERED = 256

PROBED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Kubernetes and Prometheus ask each process for these by its address, which changes and which nobody can list."""


class HostNames:
    """ASGI middleware: answers 421 (RFC 9110, section 15.5.20) to a request for another name.

    Loopback names are always taken, on any port. Without `allowed`, the others are refused only while there is no key;
    with it, always, but for `PROBED`.

    Args:
        allowed: further names, in lower case, without a port.
        ring: knows whether there is a key; asked only for a name that is not taken, and only without `allowed`.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str], ring: KeyRing) -> None:
        self.app = app
        self.allowed = frozenset(allowed)
        self.ring = ring
        self._is_taken = lru_cache(maxsize=_REMEMBERED)(self._compare)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = tuple(value for name, value in scope["headers"] if name == b"host")
        is_probe = bool(self.allowed) and own_path(scope) in PROBED
        if not is_probe and not self._is_taken(sent):
            path = scope["path"]
            try:
                refused = bool(self.allowed) or await run_in_threadpool(self.ring.is_keyless)
                problem, headers = _misdirected(sent, path), {}
            except LopError as error:
                refused, problem, headers = True, problem_of(error, path), headers_of(error)
            if refused:
                # What there is of a body is not read: the connection cannot go on.
                await problem_response(problem, {**headers, "Connection": "close"})(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _compare(self, sent: tuple[bytes, ...]) -> bool:
        found = _HOST.fullmatch(sent[0].decode("latin-1")) if len(sent) == 1 else None
        if found is None:
            return False
        name = (found["v6"] or found["name"]).lower()
        return name in self.allowed or is_loopback_name(name)


def _misdirected(sent: tuple[bytes, ...], path: str) -> Problem:
    return plain_problem(
        HTTPStatus.MISDIRECTED_REQUEST,
        path,
        rule="the server answers under names of this machine, and those in LOP_ALLOWED_HOSTS",
        values=", ".join(repr(host.decode("latin-1"))[:80] for host in sent[:2]) or "no Host header",
        remedy="Ask for http://127.0.0.1 with the server's port; behind a proxy, name its host in LOP_ALLOWED_HOSTS",
    )
