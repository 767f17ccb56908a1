"""What requests say, for both clients."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget
from service.plan_forms import PlanForm

# Servers of before there was a second schema do not look at it, and answer with schema 1, which is understood.
SCHEMA_2 = {"Accept": f"{PlanForm.SCHEMA_2}, {PlanForm.SCHEMA_1};q=0.5"}
SCHEMA_1 = {"Accept": PlanForm.SCHEMA_1.value}
UPLOAD = {"Content-Type": "application/x-tar"}
UPLOAD_SECONDS = 600.0
"""A server opens every picture before it answers."""


def headers_with_key(key: str | None) -> dict[str, str]:
    """The headers of every request; raises InputError for a key that a header cannot carry."""
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("a key is lop_..., as `lop key create` showed it", values=f"{len(key)} characters")
    return {"Authorization": f"Bearer {key}"}


def plan_body(
    model: str,
    *,
    sparsity: float | None,
    budget: Budget | Mapping[str, Any] | None,
    scope: Scope | str | None,
    space: SpaceName | str | None,
    device: str | None,
    round_to: int | None,
    tp_size: int | None,
    method: str | None,
    after_recovery: bool,
) -> dict[str, Any]:
    """Of `POST /v1/plans`; what is None is left to the server."""
    asked = {
        "sparsity": sparsity,
        "budget": _without_none(budget.model_dump() if isinstance(budget, Budget) else budget),
        "scope": None if scope is None else str(scope),
        "space": None if space is None else str(space),
        "device": device,
        "round_to": round_to,
        "tp_size": tp_size,
        "method": method,
        "after_recovery": after_recovery or None,  # which servers from before do not know
    }
    return {"model": model, **{name: value for name, value in asked.items() if value is not None}}


def check_source(data: str | Path | None, dataset: str | None) -> None:
    """Raises InputError unless one of the two says what to search on."""
    if (data is None) == (dataset is None):
        raise InputError("a search has data: a file that is handed in, or a data set that the server has, not both")


def search_body(model: str, dataset: str, sparsities: Sequence[float], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of `POST /v1/jobs`."""
    return {**settings, "kind": "search", "model": model, "dataset": dataset, "sparsities": list(sparsities)}


def recover_sources(
    data: str | Path, selection: str | Path | None, validation: str | Path | None
) -> dict[str, str | Path]:
    """What was given, by the names that `recover_body` has for it."""
    given = {"dataset": data, "selection": selection, "validation": validation}
    return {part: source for part, source in given.items() if source is not None}


def recover_body(
    plan: str, parts: Mapping[str, str], recipe: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Of `POST /v1/jobs`; `parts` are the ids of data sets: dataset, selection, validation."""
    return {**settings, "kind": "recover", "plan": plan, **parts, "recipe": dict(recipe or {})}


def dataset_named(source: str | Path) -> str | None:
    """The id of a data set, if `source` is one; None if it is a file."""
    return source if isinstance(source, str) and re.fullmatch("[0-9a-f]{64}", source) else None


def jobs_query(status: str | None, kind: str | None, model: str | None, limit: int) -> dict[str, Any]:
    """Of `GET /v1/jobs`."""
    asked = {"status": status, "kind": kind, "model": model, "limit": limit}
    return {name: value for name, value in asked.items() if value is not None}


@contextmanager
def packed_data(path: Path, conversations: int | None) -> Iterator[Path]:
    """The file that `POST /v1/datasets` takes, of the first `conversations` of a LLaVA-format file."""
    from pruning.data.conversations import load_conversations
    from pruning.data.packed_data import pack

    with TemporaryDirectory(prefix="lop-") as folder:
        out = Path(folder) / "packed.tar"
        pack(load_conversations(path, conversations), out)
        yield out


def _without_none(fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if fields is None else {name: value for name, value in fields.items() if value is not None}
