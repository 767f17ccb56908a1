"""Greedy answers to a harness's requests, in whose `args` settings stand second.

All requests of equal settings go together, so that `lop evaluate` makes the same batches of them as of its own
questions: in bfloat16, the greedy answer of a prompt may depend on what it is batched with. Only pictures that a
harness holds in memory are sent some at a time: those of a whole task would be gigabytes, here and in `lop evaluate`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from lop_evaluation.connection import Connection

MAX_PICTURE_BYTES = 64 * 2**20
"""Of pictures in one message, in base 64; the last one may go beyond."""


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
        for sent, questions in _messages(places, lambda place: question_of(requests[place])):
            answer = connection.ask(
                "generate",
                questions=questions,
                max_new_tokens=settings.get(length),
                until=[until] if isinstance(until, str) else until,
            )
            found |= dict(zip(sent, map(str, answer["answers"]), strict=True))
    return [found[place] for place in range(len(requests))]


def _by_settings(requests: Sequence[Request]) -> list[tuple[dict[str, Any], list[int]]]:
    """The places of requests that share their settings."""
    groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for place, request in enumerate(requests):
        settings = request.args[1]
        groups.setdefault(repr(sorted(settings.items())), (settings, []))[1].append(place)
    return list(groups.values())


def _messages(
    places: Sequence[int], question_at: Callable[[int], dict[str, Any]]
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """The places of each message and their questions, which are made when they are sent."""
    sent: list[int] = []
    questions: list[dict[str, Any]] = []
    num_bytes = 0
    for place in places:
        question = question_at(place)
        sent.append(place)
        questions.append(question)
        num_bytes += len(question.get("png", ""))
        if num_bytes >= MAX_PICTURE_BYTES:
            yield sent, questions
            sent, questions, num_bytes = [], [], 0
    if sent:
        yield sent, questions
