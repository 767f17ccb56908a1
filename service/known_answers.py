"""Answers that were given before: the same are sent again for as long as nothing is committed to the database.

To make a plan's answer anew from what is stored takes some fifty times as long as to send it. An answer is kept with
the mark of the database from before it was made (`storage.commit_marks`), and sent again while that is the mark.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from pruning.errors import LopError
from service.request_limits import JsonBodyRoute

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Key = tuple[object, ...]

_MOST_ANSWERS, _MOST_BYTES = 1024, 64 * 1024
"""Kept in memory, and of each body."""
_MOST_ASKED_BYTES = 4096
"""Of body, query and headers of a request whose answer is kept: it is kept, too, and white space is cheap to send."""
_HEADERS = ("content-type", "content-encoding", "accept", "if-none-match")
"""What an answer depends on, beside the address, the prefix of a proxy and the body."""


@dataclass
class _Looks:
    """Looks at the database on one event loop: one at a time, and the next one answers everybody who came meanwhile."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    next: "asyncio.Task[str | None] | None" = None


class KnownAnswers:
    """The last answers of one application; `read_mark` may block, and raise LopError."""

    def __init__(self, read_mark: Callable[[], str | None]) -> None:
        self._read_mark = read_mark
        self._answers: OrderedDict[Key, tuple[str, Response]] = OrderedDict()
        self._looks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Looks] = WeakKeyDictionary()

    async def answer(self, request: Request, handle: Handler) -> Response:
        """The answer of `handle`, or an equal one that was kept."""
        key = await _key(request)
        if key is None:
            return await handle(request)
        mark = await self._mark()
        kept = self._answers.get(key)
        if mark is not None and kept is not None and kept[0] == mark:
            self._answers.move_to_end(key)
            return _copy(kept[1])
        answer = await handle(request)
        body = getattr(answer, "body", None)
        if mark is not None and answer.status_code in (200, 201) and body is not None and len(body) <= _MOST_BYTES:
            self._answers[key] = (mark, _copy(answer))
            while len(self._answers) > _MOST_ANSWERS:
                self._answers.popitem(last=False)
        return answer

    async def _mark(self) -> str | None:
        """Of the database, from after this was called."""
        looks = self._looks.setdefault(asyncio.get_running_loop(), _Looks())
        if looks.next is None:
            looks.next = asyncio.create_task(self._look(looks))
        return await asyncio.shield(looks.next)

    async def _look(self, looks: _Looks) -> str | None:
        async with looks.turn:
            looks.next = None  # who comes from now on needs a look that begins later
            try:
                return await run_in_threadpool(self._read_mark)
            except LopError:
                return None


class KnownRoute(APIRoute):
    """A route whose answers are kept."""

    def get_route_handler(self) -> Handler:
        return _kept(super().get_route_handler())


class KnownJsonRoute(JsonBodyRoute):
    """Likewise, with a JSON body."""

    def get_route_handler(self) -> Handler:
        return _kept(super().get_route_handler())


def _kept(handle: Handler) -> Handler:
    async def handle_known(request: Request) -> Response:
        known: KnownAnswers = request.app.state.resources.known_answers
        return await known.answer(request, handle)

    return handle_known


async def _key(request: Request) -> Key | None:
    """What tells the answer apart; None for a request that is longer than any that is kept."""
    scope, body = request.scope, await request.body()
    headers = tuple((name, tuple(request.headers.getlist(name))) for name in _HEADERS)
    texts = (scope["query_string"], body, *(text for _, values in headers for text in values))
    if sum(map(len, texts)) > _MOST_ASKED_BYTES:
        return None
    path = (scope["method"], scope["path"], scope["query_string"], scope.get("root_path", ""))
    return (*path, scope.get("lop.is_head", False), headers, body)


def _copy(answer: Response) -> Response:
    """Middleware adds to the headers of what is sent."""
    copy = Response(status_code=answer.status_code)
    copy.body, copy.raw_headers = answer.body, list(answer.raw_headers)
    return copy
