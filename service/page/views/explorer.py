"""The explorer: a target in the form, and at once what would be kept and what it costs."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from pruning.allocators.methods import Method
from pruning.errors import InfeasibleTargetError, LopError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.scope import Scope
from service import devices
from service.dependencies import CatalogueDep, PlannerDep, PlansDep, ResourcesDep, WhoAsksDep
from service.keys import LOOPBACK, Asker
from service.page import asking, snippets
from service.page.curves import chart
from service.page.explaining import bounds, shown
from service.page.quality_curve import CurveDrawer, point_of
from service.page.rendering import PageRoute, page
from service.planner import Planner
from service.problems import headers_of, log_server_error, problem_of
from storage.contract import Catalogue
from storage.records import KeyScope

router = APIRouter(route_class=PageRoute, include_in_schema=False)


def _drawer(resources: ResourcesDep) -> CurveDrawer:
    return resources.curve_drawer


DrawerDep = Annotated[CurveDrawer, Depends(_drawer)]


@router.get("/explorer")
def explore(request: Request, catalogue: CatalogueDep, planner: PlannerDep, asker: WhoAsksDep) -> Response:
    """The form and the plan that it asks for; the plan alone, for htmx."""
    fields = asking.fields_of(request.query_params)
    is_part = request.headers.get("hx-request") == "true"
    models = [] if is_part else [model.id for model in catalogue.list_models()]
    if "model" not in fields and models:
        fields["model"] = models[0]
    answer = _answer(request, fields, catalogue, planner, asker) if "model" in fields else {}
    problem = answer.get("problem")
    status = problem.status if problem is not None else 200
    headers = answer.pop("headers", None)
    values = {"fields": fields, **_NOTHING, **answer}
    if is_part:
        # 200 in any case: htmx shows nothing of an answer that is an error. The browser's address becomes short.
        here = f"{request.scope.get('root_path', '')}/explorer?{asking.link_of(fields)}"
        return page(request, "plan_part.html", headers={"HX-Push-Url": here}, **values)
    return page(
        request,
        "explorer.html",
        status=status,
        headers=headers,
        models=models,
        devices=devices.list_devices(catalogue),
        spaces=list(SpaceName),
        scopes=list(Scope),
        methods=list(Method),
        unseen=asking.UNSEEN,
        **values,
    )


_NOTHING: dict[str, Any] = dict.fromkeys(
    ("problem", "nearest", "shown", "bounds", "curl", "python", "permalink", "plan_link", "curve_link", "compare_link")
)


def _answer(
    request: Request, fields: dict[str, str], catalogue: Catalogue, planner: Planner, asker: Asker
) -> dict[str, Any]:
    """What the form asks for, or the problem with it, as the API says it."""
    found: dict[str, Any] = {}
    try:
        asking.check_fields(request.query_params)
        document = asking.document_of(fields)
        asked = asking.request_of(document)
        anatomy = planner.model(asked.model).anatomy
        device = None if asked.device is None else devices.find_device(catalogue, asked.device)
        found["bounds"] = bounds(anatomy, asked, device)
        asker.check(KeyScope.PLAN)
        plan = planner.plan(asked)
    except LopError as error:
        problem = problem_of(error, request.scope["path"])
        log_server_error(request, problem, error)
        nearest = asking.nearest_link(error, fields) if isinstance(error, InfeasibleTargetError) else None
        return found | {"problem": problem, "nearest": nearest, "headers": headers_of(error)}
    root = request.scope.get("root_path", "")
    base = str(request.base_url).rstrip("/")
    against = fields.get("against")
    return found | {
        "shown": shown(request, plan, anatomy, device),
        "curl": snippets.curl(base, document, needs_key=asker.name != LOOPBACK),
        "python": snippets.python(base, document),
        "permalink": f"{root}/explorer?{asking.link_of(fields, against='')}",
        "plan_link": f"{root}/plans/{plan.plan_id}",
        "curve_link": f"{root}/explorer/curve?{asking.link_of({'model': asked.model, 'space': asked.space.value})}"
        f"&plan={plan.plan_id}",
        "compare_link": f"{root}/compare?left={against or plan.plan_id}"
        + (f"&right={plan.plan_id}" if against else ""),
    }


@router.get("/explorer/curve")
def draw_curve(request: Request, plans: PlansDep, drawer: DrawerDep, asker: WhoAsksDep) -> Response:
    """Expected quality over what is removed, by every method; with the plan that was asked for among them."""
    asker.check(KeyScope.PLAN)
    query = request.query_params
    asked = asking.request_of(
        {"model": query.get("model", ""), "space": query.get("space", SpaceName.FFN.value), "sparsity": 0.0}
    )
    found = drawer.curves(asked.model, asked.space)
    plan = plans.get_plan(query["plan"]).plan if query.get("plan") else None
    picture = chart(
        found.lines,
        x_label=f"removed share of the {found.scope.value} parameters",
        y_label="expected KL to the dense model, in nats",
        percent=True,
        marked=None if plan is None else point_of(plan, found.scope),
    )
    is_part = request.headers.get("hx-request") == "true"
    template = "curve_part.html" if is_part else "curve.html"
    return page(request, template, picture=picture, curves=found, model=asked.model)
