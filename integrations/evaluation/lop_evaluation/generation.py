"""Greedy answers to a harness's requests, in whose `args` settings stand second.

All requests of equal settings go together, so that `lop evaluate` makes the same batches of them as of its own
questions: in bfloat16, the greedy answer of a prompt may depend on what it is batched with.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from lop_evaluation.connection import Connection


class Request(Protocol):
    """Of either harness."""

    args: Any


RequestT = TypeVar("RequestT", bound=Request)


def generated(
    connection: Connection,
    requests: Sequence[RequestT],
    question_of: Callable[[RequestT], dict[str, Any]],
    *,
    length: str,
) -> list[str]:
    """The answer to each request. Of its settings `until` and the one called `length`, tokens at most, count; sampling
    would compare luck."""
    found: dict[int, str] = {}
    for settings, places in _by_settings(requests):
        until = settings.get("until") or []
        answer = connection.ask(
            "generate",
            questions=[question_of(requests[place]) for place in places],
            max_new_tokens=settings.get(length),
            until=[until] if isinstance(until, str) else until,
        )
        found |= dict(zip(places, map(str, answer["answers"]), strict=True))
    return [found[place] for place in range(len(requests))]


def _by_settings(requests: Sequence[Request]) -> list[tuple[dict[str, Any], list[int]]]:
    """The places of requests that share their settings."""
    groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for place, request in enumerate(requests):
        settings = request.args[1]
        groups.setdefault(repr(sorted(settings.items())), (settings, []))[1].append(place)
    return list(groups.values())
