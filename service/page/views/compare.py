"""Two plans side by side."""

from fastapi import APIRouter, Request, Response

from pruning.errors import NotFoundError
from service.dependencies import CatalogueDep, PlannerDep, PlansDep
from service.page.explaining import ShownPlan
from service.page.rendering import PageRoute, page
from service.page.views.plan import shown_plan
from service.problems import problem_of
from service.schemas import Problem

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_SIDES = ("left", "right")


@router.get("/compare")
def compare(request: Request, catalogue: CatalogueDep, plans: PlansDep, planner: PlannerDep) -> Response:
    """The plans that `left` and `right` name by their ids."""
    ids = {side: request.query_params.get(side, "").strip()[:200] for side in _SIDES}
    found: dict[str, ShownPlan | None] = {}
    problems: dict[str, Problem | None] = dict.fromkeys(_SIDES)
    for side, plan_id in ids.items():
        found[side] = None
        if plan_id:
            try:
                found[side] = shown_plan(request, plan_id, catalogue, plans, planner)
            except NotFoundError as error:
                problems[side] = problem_of(error, request.scope["path"])
    status = 404 if any(problems.values()) else 200
    return page(request, "compare.html", status=status, ids=ids, plans=found, problems=problems)
