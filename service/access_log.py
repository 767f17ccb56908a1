"""What is told of every request: a line in the log, a count in the metrics, an id in the answer."""

import json
import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import ServiceMetrics
from service.request_id import HEADER, begin_request

_logger = logging.getLogger("service.access")

_NOTES = "lop.notes"

CLIENT_LEFT = 499
"""The status of a request whose client went before there was an answer, as nginx notes it: no fault of the server."""


@dataclass(slots=True)
class _Notes:
    """What is found out about a request on its way in."""

    route: str = "-"


class AccessLog:
    """ASGI middleware, the outermost one: logs method, path, status, duration, bytes sent and id of every request."""

    def __init__(self, app: ASGIApp, *, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status, size, is_answered = 500, 0, False
        notes = _Notes()
        request_id = begin_request(scope)

        has_left = False

        async def heard() -> Message:
            nonlocal has_left
            message = await receive()
            has_left = has_left or message["type"] == "http.disconnect"
            return message

        async def counted(message: Message) -> None:
            nonlocal status, size, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = message["status"], True
                message = {**message, "headers": [*message["headers"], (HEADER, request_id.encode())]}
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        with self.metrics.in_flight():
            try:
                await self.app({**scope, _NOTES: notes}, heard, counted)
                if has_left and not is_answered:
                    status = CLIENT_LEFT
            finally:
                seconds = time.perf_counter() - started
                self.metrics.observe(scope["method"], notes.route, status, seconds)
                if _logger.isEnabledFor(logging.INFO):
                    fields = {
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "duration_ms": round(seconds * 1000, 1),
                        "bytes": size,
                        "client": (scope.get("client") or ("-",))[0],
                    }
                    # Quoted and escaped: a path must not be able to forge a second line.
                    words = [f"{name}={json.dumps(x) if name == 'path' else x}" for name, x in fields.items()]
                    _logger.info("%s", " ".join(words), extra={"fields": fields | {"route": notes.route}})


class RouteNote:
    """ASGI middleware, the innermost one: notes the template of the route that answered, such as /v1/jobs/{job_id}."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            route = scope.get("route")
            if route is not None and _NOTES in scope:
                scope[_NOTES].route = getattr(route, "path", "-")
