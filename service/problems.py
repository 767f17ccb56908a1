"""Every error answer, as application/problem+json (RFC 9457): one table from error classes to statuses."""

import json
import logging
import math
import reprlib
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pruning.errors import (
    AccessError,
    BusyError,
    CheckpointError,
    ConflictError,
    FingerprintMismatchError,
    InfeasibleBudgetError,
    InfeasibleTargetError,
    InputError,
    LopError,
    NotFoundError,
    SchemaRevisionError,
    ScopeError,
    StorageError,
    StorageUnavailableError,
    TooManyRequestsError,
)
from service.plan_forms import NotAcceptableError
from service.schemas import Problem

MEDIA_TYPE = "application/problem+json"

_logger = logging.getLogger("service")

# The first class that an error is an instance of decides: subclasses come before their bases.
_KINDS: tuple[tuple[type[LopError], HTTPStatus, str, str], ...] = (
    (NotFoundError, HTTPStatus.NOT_FOUND, "not-found", "Nothing is registered under this id"),
    (InfeasibleTargetError, HTTPStatus.UNPROCESSABLE_ENTITY, "infeasible-target", "The target cannot be met"),
    (
        FingerprintMismatchError,
        HTTPStatus.CONFLICT,
        "fingerprint-mismatch",
        "The stored data was made for another model",
    ),
    (CheckpointError, HTTPStatus.SERVICE_UNAVAILABLE, "unusable-predictor", "This version cannot read the predictor"),
    (NotAcceptableError, HTTPStatus.NOT_ACCEPTABLE, "not-acceptable", "The plan has no form that the request accepts"),
    (InputError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-input", "The request breaks a rule"),
    (ConflictError, HTTPStatus.CONFLICT, "conflict", "The id is taken by something else"),
    (SchemaRevisionError, HTTPStatus.SERVICE_UNAVAILABLE, "schema-revision", "The database is at another revision"),
    (StorageUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, "storage-unavailable", "The storage does not answer"),
    (StorageError, HTTPStatus.SERVICE_UNAVAILABLE, "storage", "The database cannot be used"),
    (BusyError, HTTPStatus.SERVICE_UNAVAILABLE, "busy", "The server does as much of this as it may"),
    (ScopeError, HTTPStatus.FORBIDDEN, "forbidden", "The key may not do this"),
    (AccessError, HTTPStatus.UNAUTHORIZED, "unauthorized", "A key is needed"),
    (TooManyRequestsError, HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", "The key's limit is reached"),
)

_repr = reprlib.Repr()
_repr.maxstring = 80
_repr.maxlong = 80

_REMEDIES = {
    404: "The paths are listed at /docs",
    405: "Use a method named in the Allow header",
    422: "The schema and examples are at /docs",
}


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """`problem` as an HTTP response. Pure ASCII, so that any text from the request can be shown back."""
    content = json.dumps(problem.model_dump(exclude_none=True), allow_nan=False)
    return Response(content, status_code=problem.status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def plain_problem(status: int, instance: str, *, rule: str, values: str = "", remedy: str = "") -> Problem:
    """A problem that its HTTP status names already."""
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=str(LopError(rule, values=values, remedy=remedy)),
        instance=instance,
        rule=rule,
        values=values,
        remedy=remedy,
    )


def problem_of(error: LopError, instance: str) -> Problem:
    """The problem that tells a client about `error`."""
    for kind, status, slug, title in _KINDS:
        if isinstance(error, kind):
            nearest = error.nearest if isinstance(error, InfeasibleTargetError) else None
            budget = error if isinstance(error, InfeasibleBudgetError) else None
            return Problem(
                type=f"urn:lop:{slug}",
                title=title,
                status=status,
                detail=_printable(str(error)),
                instance=instance,
                rule=_printable(error.rule),
                values=_printable(error.values),
                remedy=_printable(error.remedy),
                nearest=nearest if nearest is not None and math.isfinite(nearest) else None,
                binding=None if budget is None else budget.binding,
                nearest_values=None if budget is None else budget.nearest_values,
                spaces=(error.spaces or None) if isinstance(error, InfeasibleTargetError) else None,
                needs=error.needs if isinstance(error, ScopeError) else None,
            )
    return _internal(instance)


def headers_of(error: LopError) -> dict[str, str]:
    """What else an answer that tells of `error` says."""
    if isinstance(error, StorageUnavailableError | BusyError):
        return {"Retry-After": "5"}  # within seconds a database is back, and a stream ends
    if isinstance(error, TooManyRequestsError):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, NotAcceptableError):
        return {"Vary": "Accept"}
    if isinstance(error, AccessError):  # RFC 6750, section 3
        lacks = f', error="insufficient_scope", scope="{error.needs}"' if isinstance(error, ScopeError) else ""
        return {"WWW-Authenticate": f'Bearer realm="lop"{lacks}'}
    return {}


def log_server_error(request: Request, problem: Problem, error: LopError) -> None:
    """Tell the operator of what is not the client's doing."""
    if problem.status >= 500:
        _logger.error("%s %s: %s", request.method, request.scope["path"], error)


def invalid_request_problem(request: Request, error: RequestValidationError) -> Problem:
    """What tells a client about the first field that breaks a rule."""
    first = error.errors()[0]
    message = _printable(first["msg"]).removeprefix("Value error, ")
    where = ".".join(_printable(str(part))[:80] for part in first["loc"])
    found = "" if first["type"] in {"json_invalid", "missing"} else _short(first.get("input"))
    problem = plain_problem(422, _instance(request), rule=f"{where}: {message}", values=found, remedy=_REMEDIES[422])
    return problem.model_copy(update={"type": "urn:lop:invalid-input", "title": "The request breaks a rule"})


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app`, also those of routing and parsing, a problem document."""

    @app.exception_handler(LopError)
    def lop_error(request: Request, error: LopError) -> Response:
        problem = problem_of(error, _instance(request))
        log_server_error(request, problem, error)
        return problem_response(problem, headers_of(error))

    @app.exception_handler(RequestValidationError)
    def invalid_request(request: Request, error: RequestValidationError) -> Response:
        return problem_response(invalid_request_problem(request, error))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        # FastAPI answers 400 to a body that the JSON parser gives up on (not UTF-8, nested too deeply).
        status = 422 if error.status_code == 400 else error.status_code
        problem = plain_problem(status, _instance(request), rule=error.detail, remedy=_REMEDIES.get(status, ""))
        headers = {"Allow": _allowed(app, request)} if status == 405 else dict(error.headers or {})
        return problem_response(problem, headers)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        _logger.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
        return problem_response(_internal(_instance(request)))


def _allowed(app: FastAPI, request: Request) -> str:
    """Every method of the path, whichever route has it: routing names those of the first route alone."""
    allowed = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]
    return ", ".join([*allowed, "HEAD"] if "GET" in allowed else allowed)  # HEAD: see service.head_requests


def _internal(instance: str) -> Problem:
    return plain_problem(
        500, instance, rule="the service failed on this request", remedy="The server's log says why; please report it"
    )


def _instance(request: Request) -> str:
    return request.scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:500] or str(request.scope["path"])


def _short(value: object) -> str:
    return _printable(_repr.repr(value))[:200]


def _printable(text: str) -> str:
    """JSON may hold lone surrogates, UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()
