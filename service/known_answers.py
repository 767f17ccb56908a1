"""Answers that were given before: the same are sent again for as long as nothing is committed to the database.

To make a plan's answer anew from what is stored takes some fifty times as long as to send it. An answer is kept with
the mark of the database from before it was made (`storage.commit_marks`), and sent again while that is the mark. What
is kept is found before a route is looked for: all that FastAPI does for a request takes as long as the rest of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
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
_LONGEST_WAIT_SECONDS = 1.0
"""For another request's answer: its client may read it as slowly as it likes."""


@dataclass
class _OnLoop:
    """What is under way on one event loop.

    Looks at the database are one at a time, and the next one answers everybody who came meanwhile. An answer is made
    by the first who asks for it at a mark: all others would make the same, after every commit all at once.
    """

    waiting: list["asyncio.Future[str | None]"] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None
    being_made: "dict[tuple[Key, str], asyncio.Future[None]]" = field(default_factory=dict)


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
        read_mark: of the database; may raise LopError.
        paths: whose answers, and those of all paths below, are kept.
    """

    def __init__(self, app: ASGIApp, *, read_mark: Callable[[], Awaitable[str | None]], paths: Collection[str]) -> None:
        self.app = app
        self._read_mark = read_mark
        self._paths, self._below = frozenset(paths), tuple(f"{path}/" for path in paths)
        self._answers: OrderedDict[Key, _Answer] = OrderedDict()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _OnLoop] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keeps(own_path(scope)):
            await self.app(scope, receive, send)
            return
        asked = await receive()
        key = None if asked.get("more_body", False) else _key(scope, asked.get("body", b""))
        loop = asyncio.get_running_loop()
        here = self._loops.setdefault(loop, _OnLoop())
        mark = None if key is None else await self._mark(here, loop)
        if key is None or mark is None:
            await self.app(scope, _replay(asked, receive), send)
            return
        if await self._sent_again(key, mark, scope, send):
            return
        by_another = here.being_made.get((key, mark))
        if by_another is not None:
            await asyncio.wait([by_another], timeout=_LONGEST_WAIT_SECONDS)
            if await self._sent_again(key, mark, scope, send):
                return
        is_first = (key, mark) not in here.being_made
        if is_first:
            here.being_made[key, mark] = loop.create_future()
        sent: list[Message] = []

        async def noted(message: Message) -> None:
            sent.append(message)
            await send(message)

        try:
            await self.app(scope, _replay(asked, receive), noted)
            self._keep(key, mark, sent, scope.get("route"))
        finally:
            if is_first:
                here.being_made.pop((key, mark)).set_result(None)

    async def _sent_again(self, key: Key, mark: str, scope: Scope, send: Send) -> bool:
        """Whether there is a kept answer, which is sent then."""
        kept = self._answers.get(key)
        if kept is None or kept.mark != mark:
            return False
        self._answers.move_to_end(key)
        scope["route"] = kept.route  # for the log and the metrics
        await send(kept.start)
        await send(kept.body)
        return True

    def _keeps(self, path: str) -> bool:
        return path in self._paths or path.startswith(self._below)

    def _keep(self, key: Key, mark: str, sent: list[Message], route: Any) -> None:
        if len(sent) != 2 or sent[0].get("status") not in _KEPT_STATUSES or sent[1].get("more_body", False):
            return
        if len(sent[1].get("body", b"")) <= _MOST_BYTES:
            self._answers[key] = _Answer(mark, sent[0], sent[1], route)
            while len(self._answers) > _MOST_ANSWERS:
                self._answers.popitem(last=False)

    async def _mark(self, here: _OnLoop, loop: asyncio.AbstractEventLoop) -> str | None:
        """Of the database, from after this was called."""
        mark: asyncio.Future[str | None] = loop.create_future()
        here.waiting.append(mark)
        if here.task is None:
            here.task = loop.create_task(self._look(here))
        return await mark

    async def _look(self, here: _OnLoop) -> None:
        while here.waiting:
            answered, here.waiting = here.waiting, []  # who comes from now on needs a look that begins later
            try:
                found = await self._read()
            except Exception as error:  # noqa: BLE001 (each request that waits raises it)
                for mark in answered:
                    if not mark.done():
                        mark.set_exception(error)
            else:
                for mark in answered:
                    if not mark.done():
                        mark.set_result(found)
        here.task = None

    async def _read(self) -> str | None:
        try:
            return await self._read_mark()
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
