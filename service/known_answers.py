"""Answers that were given before: the same are sent again for as long as nothing is committed to the database.

To make a plan's answer anew from what is stored takes some fifty times as long as to send it. An answer is kept with
the mark of the database from before it was made (`storage.commit_marks`), and sent again while that is the mark. What
is kept is found before a route is looked for: all that FastAPI does for a request takes as long as the rest of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pruning.errors import LopError
from service.root_path import own_path

Key = tuple[object, ...]

_MOST_ANSWERS, _MOST_BYTES = 1024, 64 * 1024
"""Kept in memory, and of each body."""
_MOST_ASKED_BYTES = 4096
"""Of body, query and headers of a request whose answer is kept: it is kept, too, and white space is cheap to send."""
_HEADERS = (b"content-type", b"content-encoding", b"accept", b"if-none-match")
"""What an answer depends on, beside the address, the prefix of a proxy and the body."""
_KEPT_STATUSES = (200, 201)


@dataclass
class _Looks:
    """Looks at the database on one event loop: one at a time, and the next one answers everybody who came meanwhile."""

    waiting: list["asyncio.Future[str | None]"] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was sent, the mark from before it was made, and the route that made it."""

    mark: str
    start: Message
    body: Message
    route: Any


class KnownAnswers:
    """ASGI middleware inside all that refuses requests or adds to answers.

    Args:
        read_mark: of the database; may block, and raise LopError.
        paths: whose answers, and those of all paths below, are kept.
    """

    def __init__(self, app: ASGIApp, *, read_mark: Callable[[], str | None], paths: Collection[str]) -> None:
        self.app = app
        self._read_mark = read_mark
        self._paths, self._below = frozenset(paths), tuple(f"{path}/" for path in paths)
        self._answers: OrderedDict[Key, _Answer] = OrderedDict()
        self._looks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Looks] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keeps(own_path(scope)):
            await self.app(scope, receive, send)
            return
        asked = await receive()
        key = None if asked.get("more_body", False) else _key(scope, asked.get("body", b""))
        mark = None if key is None else await self._mark()
        if key is None or mark is None:
            await self.app(scope, _replay(asked, receive), send)
            return
        kept = self._answers.get(key)
        if kept is not None and kept.mark == mark:
            self._answers.move_to_end(key)
            scope["route"] = kept.route  # for the log and the metrics
            await send(kept.start)
            await send(kept.body)
            return
        sent: list[Message] = []

        async def noted(message: Message) -> None:
            sent.append(message)
            await send(message)

        await self.app(scope, _replay(asked, receive), noted)
        self._keep(key, mark, sent, scope.get("route"))

    def _keeps(self, path: str) -> bool:
        return path in self._paths or path.startswith(self._below)

    def _keep(self, key: Key, mark: str, sent: list[Message], route: Any) -> None:
        if len(sent) != 2 or sent[0].get("status") not in _KEPT_STATUSES or sent[1].get("more_body", False):
            return
        if len(sent[1].get("body", b"")) <= _MOST_BYTES:
            self._answers[key] = _Answer(mark, sent[0], sent[1], route)
            while len(self._answers) > _MOST_ANSWERS:
                self._answers.popitem(last=False)

    async def _mark(self) -> str | None:
        """Of the database, from after this was called."""
        loop = asyncio.get_running_loop()
        looks = self._looks.setdefault(loop, _Looks())
        mark: asyncio.Future[str | None] = loop.create_future()
        looks.waiting.append(mark)
        if looks.task is None:
            looks.task = loop.create_task(self._look(looks))
        return await mark

    async def _look(self, looks: _Looks) -> None:
        loop = asyncio.get_running_loop()
        while looks.waiting:
            answered, looks.waiting = looks.waiting, []  # who comes from now on needs a look that begins later
            try:
                # Of this loop alone: FastAPI's own threads are taken by requests that wait for the database.
                found = await loop.run_in_executor(None, self._read)
            except Exception as error:  # noqa: BLE001 (each request that waits raises it)
                for mark in answered:
                    if not mark.done():
                        mark.set_exception(error)
            else:
                for mark in answered:
                    if not mark.done():
                        mark.set_result(found)
        looks.task = None

    def _read(self) -> str | None:
        try:
            return self._read_mark()
        except LopError:
            return None


def _replay(asked: Message, receive: Receive) -> Receive:
    """`receive` once more from its first message."""
    waiting = [asked]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _key(scope: Scope, body: bytes) -> Key | None:
    """What tells the answer apart; None for a request that is longer than any that is kept."""
    headers = tuple((name, value) for name, value in scope["headers"] if name in _HEADERS)
    length = len(body) + len(scope["query_string"]) + sum([len(value) for _, value in headers])
    if length > _MOST_ASKED_BYTES:
        return None
    path = (scope["method"], scope["path"], scope["query_string"], scope.get("root_path", ""))
    return (*path, scope.get("lop.is_head", False), headers, body)
