"""Plans: one request per target."""

from fastapi import APIRouter, Request, Response, status

from pruning.planning.plan import PruningPlan
from service.conditional import matches, strong_etag
from service.dependencies import PlanId, PlannerDep, PlansDep
from service.openapi import PLAN_EXAMPLE, problems
from service.request_limits import JsonBodyRoute
from service.root_path import seen_from_outside
from service.schemas import PlanRequest

router = APIRouter(prefix="/v1/plans", tags=["plans"], route_class=JsonBodyRoute)
reading = APIRouter(prefix="/v1/plans", tags=["plans"])

_EXAMPLE = {"application/json": {"example": PLAN_EXAMPLE}}
_LOCATION = {"Location": {"description": "Path of the plan.", "schema": {"type": "string"}}}


@router.post(
    "",
    summary="Get the plan for a target",
    status_code=status.HTTP_201_CREATED,
    response_model=PruningPlan,
    responses={
        201: {
            "description": "The plan; byte for byte the one that an equal request got before.",
            "content": _EXAMPLE,
            "headers": _LOCATION,
        },
        **problems(404, 409, 413, 415, 422, 503),
    },
)
def request_plan(asked: PlanRequest, planner: PlannerDep, request: Request) -> Response:
    """Per-layer widths that remove at least `sparsity` of `scope`, or keep every limit of `budget`, or fit the memory
    of `device`: nothing is exceeded, and no layer could keep one step more. By `method`, or else by the best one that
    the stored data allows: `lop` (a trained predictor), else `mcts` (a finished search within one level step of the
    target), else `additive-dp` (a complete one-layer scan), else `uniform`. `provenance.note` says why a better one was
    not used, what a predicted quality was measured on, and where a latency comes from. Equal requests get the same plan
    until there is newer data: a predictor, statistics, a search or its validation, a profile of the device. Plans stay
    readable for ever.
    """
    plan = planner.plan(asked)
    response = _plan_response(plan, request)
    response.status_code = status.HTTP_201_CREATED
    response.headers["Location"] = seen_from_outside(request, f"/v1/plans/{plan.plan_id}")
    return response


@reading.get(
    "/{plan_id}",
    summary="Read a plan",
    response_model=PruningPlan,
    responses={200: {"description": "The plan.", "content": _EXAMPLE}, **problems(404, 422, 503)},
)
def read_plan(plan_id: PlanId, repository: PlansDep, request: Request) -> Response:
    """A plan that was handed out before. Plans never change."""
    plan = repository.get_plan(plan_id).plan
    if matches(request.headers.get("if-none-match"), strong_etag(plan.plan_id)):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": strong_etag(plan.plan_id)})
    return _plan_response(plan, request)


def _plan_response(plan: PruningPlan, request: Request) -> Response:
    if plan.ranking.url is not None:
        ranking = plan.ranking.model_copy(update={"url": seen_from_outside(request, plan.ranking.url)})
        plan = plan.model_copy(update={"ranking": ranking})
    headers = {"ETag": strong_etag(plan.plan_id), "Cache-Control": "private, max-age=86400, immutable"}
    return Response(plan.model_dump_json(), media_type="application/json", headers=headers)
