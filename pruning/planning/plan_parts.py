"""What plans of both schemas are made of: the model, where a plan comes from, and the rules that all parts share."""

import hashlib
import json
import operator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruning.errors import PlanError

SHA256 = r"^[0-9a-f]{64}$"
INT64_MAX = 2**63 - 1
FETCH_AGAIN = "Fetch the plan again with `lop plan`"
UPGRADE = "Upgrade lop-service, or fetch the plan again with `lop plan`"


def is_none(value: object) -> bool:
    """What decides that a field is left out where it says nothing: plans from before there was one stay as they are."""
    return value is None


class Part(BaseModel):
    """A part of a plan: immutable, finite, and nothing in it that the schema does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PlanModel(Part):
    """The model that a plan was made for.

    `weights_sha256` is of the weight files that were ranked (`pruning.checkpoints.headers.weights_sha256`): models of
    one shape share their fingerprint. None in plans from before it was recorded.
    """

    id: str
    fingerprint: str = Field(pattern=SHA256)
    weights_sha256: str | None = Field(default=None, pattern=SHA256, exclude_if=is_none)


class Provenance(Part):
    """Where the plan comes from, enough to make it again.

    `filled_up`: it is no point of a search itself, but one that was searched for another target and got more channels.
    `units_of`: the id of the plan whose units it has without its bits, which are left to another program.
    """

    predictor: str | None = None
    samples: int = Field(default=0, ge=0)
    calibration: str | None = None
    seed: int | None = None
    note: str | None = None
    filled_up: bool = Field(default=False, exclude_if=operator.not_)
    units_of: str | None = Field(default=None, exclude_if=is_none)


def broken_field(error: ValidationError, version: int) -> PlanError:
    """What is wrong with a document of schema `version`: its first broken field, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    return PlanError(
        f"not a valid pruning plan of schema version {version}: {where}: {first['msg'].removeprefix('Value error, ')}",
        values=repr(first.get("input"))[:80],
        remedy=FETCH_AGAIN,
    )


def content_id(document: dict[str, Any]) -> str:
    """A stable id of a JSON document: the first 24 hex digits of the sha256 of its canonical form."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]
