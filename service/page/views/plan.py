"""One plan by its id: the page that stays the same when there is newer data."""

from fastapi import APIRouter, Request, Response

from pruning.errors import LopError
from service.dependencies import CatalogueDep, PlannerDep, PlansDep, WhoAsksDep
from service.devices import find_device
from service.keys import LOOPBACK
from service.page import snippets
from service.page.explaining import ShownPlan, shown
from service.page.rendering import PageRoute, page
from service.planner import Planner
from storage.contract import Catalogue, Plans

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/plans/{plan_id}")
def show_plan(
    plan_id: str, request: Request, catalogue: CatalogueDep, plans: PlansDep, planner: PlannerDep, asker: WhoAsksDep
) -> Response:
    """A stored plan, and how to fetch it."""
    found = shown_plan(request, plan_id, catalogue, plans, planner)
    base = str(request.base_url).rstrip("/")
    return page(
        request,
        "plan.html",
        shown=found,
        curl=snippets.curl_stored(base, found.plan.plan_id, needs_key=asker.name != LOOPBACK),
        python=snippets.python_stored(base, found.plan.plan_id),
    )


def shown_plan(request: Request, plan_id: str, catalogue: Catalogue, plans: Plans, planner: Planner) -> ShownPlan:
    """The plan under `plan_id` as pages show it; raises NotFoundError if there is none."""
    plan = plans.get_plan(plan_id).plan
    device = None
    if plan.target.device is not None:
        try:
            device = find_device(catalogue, plan.target.device)
        except LopError:  # it is gone: then nothing is said of the dense model's time on it
            device = None
    return shown(request, plan, planner.model(plan.model.id).anatomy, device)
