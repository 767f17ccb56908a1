"""Plans: one request per target, answered in the schema that the client asks for."""

from typing import Any

from fastapi import APIRouter, Request, Response, status

from pruning.planning.plan import PruningPlan
from pruning.planning.plan_v1 import PlanV1
from service.conditional import matches
from service.dependencies import PlanId, PlannerDep, PlansDep, WantedForms
from service.openapi import PLAN_EXAMPLE, PLAN_V1_EXAMPLE, problems
from service.plan_forms import PlanForm, in_form
from service.planner import Planner
from service.request_limits import JsonBodyRoute
from service.root_path import plan_from_outside, seen_from_outside
from service.schemas import PlanRequest

router = APIRouter(prefix="/v1/plans", tags=["plans"], route_class=JsonBodyRoute)
reading = APIRouter(prefix="/v1/plans", tags=["plans"])

_CONTENT: dict[str, Any] = {
    PlanForm.SCHEMA_1.value: {"example": PLAN_V1_EXAMPLE},
    PlanForm.SCHEMA_2.value: {
        "schema": {"$ref": f"#/components/schemas/{PruningPlan.__name__}"},
        "example": PLAN_EXAMPLE,
    },
}
_TEXT = {"schema": {"type": "string"}}
_VARY = {"Vary": {"description": "Accept: it says which schema of a plan is wanted.", **_TEXT}}
_LOCATION = {"Location": {"description": "Path of the plan.", **_TEXT}}


@router.post(
    "",
    summary="Get the plan for a target",
    status_code=status.HTTP_201_CREATED,
    response_model=PlanV1,
    responses={
        201: {
            "description": "The plan; byte for byte the one that an equal request got before in this schema.",
            "content": _CONTENT,
            "headers": _LOCATION | _VARY,
        },
        **problems(404, 406, 409, 413, 415, 422, 503),
    },
)
def request_plan(asked: PlanRequest, planner: PlannerDep, wanted: WantedForms, request: Request) -> Response:
    """Per-layer widths that remove at least `sparsity` of `scope`, or keep every limit of `budget`, or fit the memory
    of `device`: nothing is exceeded, and no layer could keep one step more. By `method`, or else by the best one that
    the stored data allows: `lop` (a trained predictor), else `mcts` (a finished search within one level step of the
    target), else `additive-dp` (a complete one-layer scan), else `uniform`. `provenance.note` says why a better one was
    not used, what a predicted quality was measured on, and where a latency comes from. Equal requests get the same plan
    until there is newer data: a predictor, statistics, a search or its validation, a profile of the device. Plans stay
    readable until an operator removes old ones.

    With `Accept: application/vnd.lop.plan.v2+json` the plan is of schema 2. Otherwise it is of schema 1, or, if that
    cannot say what is meant, refused with 406.
    """
    plan = planner.plan(asked)
    response = _plan_response(plan, planner, wanted, request)
    response.status_code = status.HTTP_201_CREATED
    response.headers["Location"] = seen_from_outside(request, f"/v1/plans/{plan.plan_id}")
    return response


@reading.get(
    "/{plan_id}",
    summary="Read a plan",
    response_model=PlanV1,
    responses={
        200: {"description": "The plan.", "content": _CONTENT, "headers": _VARY},
        **problems(404, 406, 422, 503),
    },
)
def read_plan(
    plan_id: PlanId, repository: PlansDep, planner: PlannerDep, wanted: WantedForms, request: Request
) -> Response:
    """A plan that was handed out before, in the schema that is asked for: see `POST /v1/plans`. Plans never change."""
    response = _plan_response(repository.get_plan(plan_id).plan, planner, wanted, request)
    if matches(request.headers.get("if-none-match"), response.headers["ETag"]):
        kept = {name: response.headers[name] for name in ("ETag", "Vary", "Cache-Control")}
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=kept)
    return response


def _plan_response(plan: PruningPlan, planner: Planner, wanted: WantedForms, request: Request) -> Response:
    plan = plan_from_outside(request, plan)
    form, document = in_form(plan, planner.model(plan.model.id).anatomy, wanted)
    headers = {
        "ETag": form.etag(plan.plan_id),
        "Cache-Control": "private, max-age=86400, immutable",
        "Vary": "Accept",
    }
    return Response(document.model_dump_json(), media_type=form.value, headers=headers)
