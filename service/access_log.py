"""One structured line per request, in logfmt: easy to read and to parse."""

import json
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_logger = logging.getLogger("service.access")


class AccessLog:
    """ASGI middleware: logs method, path, status, duration and bytes sent of every HTTP request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status, size = 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            _logger.info(
                "method=%s path=%s status=%d duration_ms=%.1f bytes=%d client=%s",
                scope["method"],
                # Quoted and escaped: a path must not be able to forge a second line.
                json.dumps(scope["path"]),
                status,
                (time.perf_counter() - started) * 1000,
                size,
                (scope.get("client") or ("-",))[0],
            )
