"""Getting a plan, from a server or straight from the database, and keeping it as files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lop.applying import ranking_path
from lop.client import Client
from lop.console.kept_layers import Units
from pruning.anatomy.architecture import Sublayer
from pruning.atomic_file import check_name, replace_file
from pruning.errors import CheckpointError, InputError
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_downgrade import downgrade
from pruning.planning.plan_v1 import PlanV1
from pruning.planning.scope import check_sparsity

AnyPlan = PruningPlan | PlanV1
"""A plan as it is written: of schema 2, or of schema 1."""


@dataclass(frozen=True)
class FoundPlan:
    """A plan, its ranking file, and the units [L] that the dense model has; the latter two where they were asked for.

    `dense` is None also where a server of before does not say how many KV groups its models have.
    """

    plan: AnyPlan
    ranking: bytes | None
    dense: Units | None


def plan_from_server(
    url: str, *, schema: int, with_ranking: bool, with_dense: bool = False, **request: Any
) -> FoundPlan:
    """The server's plan; raises what `Client.plan` and `Client.get_plan_v1` raise."""
    with Client(url) as client:
        plan = client.plan(**request)
        ranking = client.ranking(plan) if with_ranking else None
        model = client.model(plan.model.id) if with_dense else {}
        dense = None
        if model.keys() >= {"ffn_widths", "kv_groups"}:
            dense = {Sublayer.FFN: model["ffn_widths"], Sublayer.ATTENTION: model["kv_groups"]}
        return FoundPlan(client.get_plan_v1(plan.plan_id) if schema == 1 else plan, ranking, dense)


def plan_from_database(database: str | None, *, schema: int, **request: Any) -> FoundPlan:
    """The plan that a server over `database` would give; raises PlanSchemaError if schema 1 is asked for and cannot say
    it."""
    from pydantic import ValidationError

    from service.planner import Planner
    from service.predictor_cache import PredictorCache
    from service.schemas import PlanRequest
    from service.settings import load_settings
    from storage.sql_repository import open_repository

    settings = load_settings(database_url=database)
    if request.get("sparsity") is not None:
        check_sparsity(request["sparsity"])
    try:
        asked = PlanRequest(**request)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        # A rule about the whole request has no place, and all of the request is its input.
        raise InputError(
            f"{where}: {message}" if where else message,
            values=repr(first["input"]) if where else "",
            remedy="`lop plan --help` lists what is allowed",
        ) from error
    with open_repository(settings.database_url) as repository:
        planner = Planner(repository, PredictorCache(repository, capacity=1))
        plan, anatomy = planner.plan(asked), planner.model(asked.model).anatomy
        written = downgrade(plan, anatomy) if schema == 1 else plan.without_dense(anatomy)
        dense = {sublayer: anatomy.dense_units(sublayer) for sublayer in Sublayer}
        return FoundPlan(written, repository.get_artifact(plan.ranking.sha256).content, dense)


def write_plan(plan: AnyPlan, ranking: bytes | None, out: Path) -> None:
    """Write the plan and, beside it, its ranking; each file is whole or absent."""
    check_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if ranking is not None:
            replace_file(ranking_path(out), ranking)
        replace_file(out, plan.to_json().encode())
    except OSError as error:
        raise CheckpointError("the plan's folder must be writable", values=f"{out}: {error.strerror}") from error
