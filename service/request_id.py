"""The id of the request at hand: in its answer, and in every line that is logged while it is answered."""

import random
import re
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

HEADER = b"x-request-id"
_IN_SCOPE = "lop.request_id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_numbers = random.Random()
"""Of ids, which are no secret: the system's own numbers take six times as long."""
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """Of the request that this task or thread is about; None outside of one."""
    return _current.get()


def begin_request(scope: MutableMapping[str, Any]) -> str:
    """The id that the request came with (a proxy's, say), or a new one; from now on it is the current one.

    It stays in the ASGI `scope`: whoever asks again of the same request gets the same. What is no plain word is not
    taken: it ends up in logs.
    """
    given: str | None = scope.get(_IN_SCOPE)
    if given is None:
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == HEADER]
        given = sent[0] if len(sent) == 1 and _ID.fullmatch(sent[0]) else f"{_numbers.getrandbits(128):032x}"
        scope[_IN_SCOPE] = given
    _current.set(given)
    return given
