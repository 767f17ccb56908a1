"""Requests refused before anything parses them: a body that is too large, is not JSON, or is encoded."""

from collections.abc import Callable, Collection, Coroutine, Mapping
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from service.problems import plain_problem, problem_response
from service.root_path import own_path


class RequestSizeLimit:
    """ASGI middleware: answers 413 to a body of over `max_bytes`, whether its length is declared or it is streamed.

    A body within the limit is read whole before the application starts; the limit is what it may cost in memory.
    `larger` has the paths whose requests are longer by their nature, and their limits; `streamed` those whose endpoints
    read the body piece by piece, with a limit of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        larger: Mapping[str, int] | None = None,
        streamed: Collection[str] = (),
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.larger = dict(larger or {})
        self.streamed = frozenset(streamed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or own_path(scope) in self.streamed:
            await self.app(scope, receive, send)
            return
        most = max(self.max_bytes, self.larger.get(own_path(scope), 0))
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > most:
            await self._refuse(scope, receive, send, most, f"{int(declared)} bytes")
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > most:
                await self._refuse(scope, receive, send, most, "a longer stream")
                return
            if not message.get("more_body", False):
                break
        replayed = False

        async def replay() -> AsgiMessage:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, most: int, found: str) -> None:
        await too_long(scope["path"], most, found, "LOP_MAX_REQUEST_BYTES")(scope, receive, send)


def too_long(path: str, most: int, found: str, setting: str) -> Response:
    """The answer to a body of over `most` bytes, which `setting` allows."""
    problem = plain_problem(
        413,
        path,
        rule=f"a request body has at most {most} bytes",
        values=found,
        remedy=f"Send less, or raise {setting} on the server",
    )
    # What is left of the body is never read, so the connection cannot be used again.
    return problem_response(problem, {"Connection": "close"})


class JsonBodyRoute(APIRoute):
    """A route whose body must be declared as JSON, as it is: neither compressed nor otherwise encoded; else 415."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            declared = request.headers.get("content-type", "")
            if not _is_json(declared):
                problem = plain_problem(
                    415,
                    request.scope["path"],
                    rule="the request body must be JSON",
                    values=repr(declared[:100]) if declared else "no Content-Type",
                    remedy="Send Content-Type: application/json",
                )
                return problem_response(problem, {"Accept": "application/json"})
            encoding = request.headers.get("content-encoding", "")
            if encoding.strip().lower() not in ("", "identity"):
                problem = plain_problem(
                    415,
                    request.scope["path"],
                    rule="the request body must be sent as it is, without a content coding",
                    values=f"Content-Encoding: {encoding[:100]}",
                    remedy="Leave the body uncompressed: it is small",
                )
                return problem_response(problem, {"Accept-Encoding": "identity"})  # RFC 9110, section 15.5.16
            return await handle(request)

        return handle_json


def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
