"""The explorer's form: what its fields say as the JSON that `POST /v1/plans` takes, and back.

The fields are named as in the API; memory is asked for in MiB, since nobody drags a slider over bytes. The address of
the page holds the fields, so it is a link to what is seen.
"""

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError

from pruning.errors import InfeasibleBudgetError, InfeasibleTargetError, InputError
from service.schemas import PlanRequest

MIB = 2**20
SPARSITY, BUDGET = "sparsity", "budget"
DEFAULT_SPARSITY = "0.3"

_TEXTS = ("space", "device", "method")
_WHOLE = ("round_to", "tp_size")
_WORKLOAD = ("batch", "prompt_tokens", "output_tokens")
_COUNTS = ("flops", "disk_bytes", "gguf_bytes")
_LIMITS = ("memory_mib", "latency_ms", *_COUNTS)
UNSEEN = (*_COUNTS, "gguf_type", "after_recovery", "against")
"""Fields that the form has no place for, and keeps: they come with a link."""

FIELDS = ("model", "ask", SPARSITY, "scope", *_TEXTS, *_LIMITS, *_WORKLOAD, *_WHOLE, *UNSEEN[len(_COUNTS) :])

_KNOWN = f"It has {', '.join(FIELDS)}"


def fields_of(query: Mapping[str, str]) -> dict[str, str]:
    """The fields that are filled in, and what is asked for: a sparsity, unless only limits are given."""
    fields = {name: query[name].strip()[:200] for name in FIELDS if query.get(name, "").strip()}
    if fields.get("ask") not in (SPARSITY, BUDGET):
        only_limits = SPARSITY not in fields and any(name in fields for name in _LIMITS)
        fields["ask"] = BUDGET if only_limits else SPARSITY
    if fields["ask"] == SPARSITY:
        fields.setdefault(SPARSITY, DEFAULT_SPARSITY)
    return fields


def check_fields(query: Mapping[str, str]) -> None:
    """Raises InputError for a field that there is not: it would be left out without a word."""
    if unknown := sorted(set(query) - {*FIELDS}):
        raise InputError("the explorer has no such field", values=", ".join(unknown)[:200], remedy=_KNOWN)


def document_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """The request as the API takes it. Raises InputError for what is no number."""
    document: dict[str, Any] = {"model": fields.get("model", "")}
    if fields["ask"] == SPARSITY:
        document[SPARSITY] = _number(fields, SPARSITY)
        if "scope" in fields:
            document["scope"] = fields["scope"]
    else:
        budget: dict[str, Any] = {}
        if "memory_mib" in fields:
            budget["memory_bytes"] = round(_number(fields, "memory_mib") * MIB)
        if "latency_ms" in fields:
            budget["latency_ms"] = _number(fields, "latency_ms")
        budget |= {name: _whole(fields, name) for name in (*_COUNTS, *_WORKLOAD) if name in fields}
        if "gguf_type" in fields:
            budget["gguf_type"] = fields["gguf_type"]
        if budget:
            document[BUDGET] = budget
    document |= {name: fields[name] for name in _TEXTS if name in fields}
    if "after_recovery" in fields:
        document["after_recovery"] = _truth(fields, "after_recovery")
    return document | {name: _whole(fields, name) for name in _WHOLE if name in fields}


def request_of(document: Mapping[str, Any]) -> PlanRequest:
    """The request itself, as the API reads it; raises InputError that names the first field that breaks a rule."""
    try:
        return PlanRequest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {message}" if where else message) from error


def link_of(fields: Mapping[str, str], **changed: str) -> str:
    """The query of the page's address for `fields`, some of them changed; "" takes one away."""
    named = {**fields, **changed}
    return urlencode({name: named[name] for name in FIELDS if named.get(name)})


def nearest_link(error: InfeasibleTargetError, fields: Mapping[str, str]) -> str | None:
    """The query that asks for the nearest target that can be met; None where the error names none."""
    if isinstance(error, InfeasibleBudgetError):
        changed = {}
        for name, value in error.nearest_values.items():
            if name == "memory_bytes":
                changed["memory_mib"] = repr(math.ceil(value) / MIB)
            elif name == "latency_ms":
                changed["latency_ms"] = repr(float(value))
            elif name in _COUNTS:
                changed[name] = str(math.ceil(value))
        return link_of(fields, **changed) if changed else None
    if error.nearest is None or fields["ask"] != SPARSITY:
        return None
    return link_of(fields, sparsity=repr(float(error.nearest)))


def _number(fields: Mapping[str, str], name: str) -> float:
    try:
        number = float(fields.get(name, ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} is a number", values=repr(fields.get(name, ""))[:80])
    return number


def _whole(fields: Mapping[str, str], name: str) -> int:
    try:
        return int(fields[name])
    except ValueError as error:
        raise InputError(f"{name} is a whole number", values=repr(fields[name])[:80]) from error


def _truth(fields: Mapping[str, str], name: str) -> bool:
    if fields[name] not in ("true", "false"):
        raise InputError(f"{name} is true or false", values=repr(fields[name])[:80])
    return fields[name] == "true"
