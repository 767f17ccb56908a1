"""One request of the client, and the errors that its answer stands for.

What is passing is tried again: 502, 429, and 503 where the answer does not say that waiting is in vain.
"""

import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import httpx

from pruning.errors import (
    AccessError,
    ConflictError,
    InfeasibleBudgetError,
    InfeasibleTargetError,
    InputError,
    LopError,
    LopServerError,
    NotFoundError,
    ScopeError,
    SpaceReach,
)
from pruning.reasons import reason_of

DEFAULT_RETRIES = 4
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0


def pauses(retries: int) -> Iterator[float]:
    """Seconds before each further try: twice as long every time, each shortened at random so that clients part."""
    for number in range(retries):
        yield min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**number) * random.uniform(0.5, 1.0)


def pause_after(response: httpx.Response, pause: float) -> float | None:
    """Seconds to wait before the request is worth another try; None if it is not."""
    after = response.headers.get("retry-after", "")
    is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
    passing = response.status_code in (httpx.codes.BAD_GATEWAY, httpx.codes.TOO_MANY_REQUESTS) or (
        response.status_code == httpx.codes.SERVICE_UNAVAILABLE and (bool(after) or not is_problem)
    )
    if not passing:
        return None
    return min(LONGEST_PAUSE_SECONDS, max(pause, float(after))) if after.isdigit() else pause


def checked(response: httpx.Response) -> httpx.Response:
    """The answer, if it is one of success; else raises the error that it stands for."""
    if response.is_success:
        return response
    raise _error_of(response)


def unreachable(http: httpx.Client | httpx.AsyncClient, url: str, error: Exception) -> LopError:
    """The error of a request that was not answered, or could not be written."""
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return LopServerError(
            "the server must answer",
            values=f"{str(http.base_url).rstrip('/')}{url}: {reason_of(error)}",
            remedy="Start it with `lop serve`, or correct the URL",
        )
    return InputError("a request holds finite numbers", values=str(error))  # NaN or infinity in the body


UNSENT = (httpx.HTTPError, httpx.InvalidURL, ValueError)
"""What httpx raises of a request that was not answered."""


def _error_of(response: httpx.Response) -> LopError:
    """The error of the tree that a problem+json answer stands for."""
    status = response.status_code
    try:
        problem: dict[str, Any] = response.json()
        detail = str(problem.get("rule") or problem.get("detail") or problem["title"])
        values, remedy = str(problem.get("values") or ""), str(problem.get("remedy") or "")
    except (ValueError, KeyError, AttributeError):
        return LopServerError("the server must answer in its own format", values=f"HTTP {status}", status=status)
    said = {"values": values, "remedy": remedy}
    if status == httpx.codes.FORBIDDEN and isinstance(problem.get("needs"), str):
        return ScopeError(detail, **said, needs=problem["needs"])
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return AccessError(detail, **said)
    if status == httpx.codes.NOT_FOUND:
        return NotFoundError(detail, **said)
    if response.is_server_error or status == httpx.codes.TOO_MANY_REQUESTS:
        return LopServerError(detail, **said, status=status, problem=problem)
    if status == httpx.codes.CONFLICT:
        return ConflictError(detail, **said)
    nearest, binding = problem.get("nearest_values"), problem.get("binding")
    if isinstance(nearest, dict) and isinstance(binding, str) and binding in nearest:
        return InfeasibleBudgetError(
            detail, **said, binding=binding, nearest_values=nearest, spaces=_spaces_of(problem)
        )
    if problem.get("nearest") is not None:
        return InfeasibleTargetError(detail, **said, nearest=float(problem["nearest"]), spaces=_spaces_of(problem))
    return InputError(detail, **said)


def _spaces_of(problem: dict[str, Any]) -> dict[str, SpaceReach]:
    """What the answer says of each space; a server of before says nothing, and a newer one perhaps more."""
    said, known = problem.get("spaces"), {field.name for field in fields(SpaceReach)}
    return {
        str(name): SpaceReach(**{key: value for key, value in reach.items() if key in known})
        for name, reach in (said.items() if isinstance(said, dict) else ())
        if isinstance(reach, dict) and "reaches" in reach
    }
