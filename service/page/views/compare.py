"""Two plans side by side."""

from fastapi import APIRouter, Request, Response

from pruning.errors import LopError, NotFoundError
from service.dependencies import CatalogueDep, PlannerDep, PlansDep
from service.devices import find_device
from service.page.explaining import ShownPlan, shown
from service.page.rendering import PageRoute, page
from service.planner import Planner
from service.problems import problem_of
from service.schemas import Problem
from storage.contract import Catalogue, Plans

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
                found[side] = _shown(plan_id, catalogue, plans, planner)
            except NotFoundError as error:
                problems[side] = problem_of(error, request.scope["path"])
    status = 404 if any(problems.values()) else 200
    return page(request, "compare.html", status=status, ids=ids, plans=found, problems=problems)


def _shown(plan_id: str, catalogue: Catalogue, plans: Plans, planner: Planner) -> ShownPlan:
    plan = plans.get_plan(plan_id).plan
    device = None
    if plan.target.device is not None:
        try:
            device = find_device(catalogue, plan.target.device)
        except LopError:  # it is gone: then nothing is said of the dense model's time on it
            device = None
    return shown(plan, planner.model(plan.model.id).anatomy, device)
