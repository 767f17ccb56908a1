"""The HTTP client: a target in, a plan out.

Tests hand in a transport that calls the application without a socket (`httpx` documents how).
"""

import hashlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from lop.http_clients import http_client
from pruning.errors import (
    CheckpointError,
    InfeasibleBudgetError,
    InfeasibleTargetError,
    InputError,
    LopError,
    NotFoundError,
)
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_v1 import PlanV1
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget
from pruning.reasons import reason_of
from service.plan_forms import PlanForm

DEFAULT_URL = "http://127.0.0.1:8000"


# Servers of before there was a second schema do not look at it, and answer with schema 1, which is understood.
_SCHEMA_2 = {"Accept": f"{PlanForm.SCHEMA_2}, {PlanForm.SCHEMA_1};q=0.5"}
_SCHEMA_1 = {"Accept": PlanForm.SCHEMA_1.value}


class ServerError(LopError):
    """The server cannot be reached, or answered in a way that is not its contract."""


class Client:
    """Talks to one LOP server. Use as a context manager, or call `close`; safe to share between threads.

    Args:
        url: where the server listens.
        timeout_seconds: for each request.
        transport: replaces the network, for tests.

    Raises what `lop.http_clients.http_client` raises of the URL and of the environment's proxies.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = http_client(url, base_url=url, timeout=timeout_seconds, transport=transport)

    def plan(
        self,
        *,
        model: str,
        sparsity: float | None = None,
        budget: Budget | Mapping[str, Any] | None = None,
        scope: Scope | str | None = None,
        space: SpaceName | str | None = None,
        device: str | None = None,
        round_to: int | None = None,
        tp_size: int | None = None,
        method: str | None = None,
    ) -> PruningPlan:
        """Request the plan of `model` for a sparsity, or for a budget; the ranking's URL in it is absolute.

        Args:
            model: id of a registered model.
            sparsity: fraction of `scope` to remove.
            budget: instead of a sparsity, what the model may cost: `pruning.planning.workload.Budget`, or its fields.
                Neither of the two: the device's memory.
            scope: what the sparsity counts: `ffn` by default, in other spaces than that `decoder`.
            space: what may be changed: `ffn` (widths, the default), `attention`, `layers` or `all`.
            device: id of a device. It prices latency; with a budget its memory is a limit too.
            round_to: widths are multiples of this.
            tp_size: devices that share each layer: it divides every width.
            method: how widths are chosen; by default by the best that the server's data allows.

        Raises:
            InputError: the request breaks a rule (its subclasses NotFoundError, InfeasibleTargetError and
                InfeasibleBudgetError included).
            ServerError: there is no such server, or it is out of order.
        """
        asked = {
            "sparsity": sparsity,
            "budget": _without_none(budget.model_dump() if isinstance(budget, Budget) else budget),
            "scope": None if scope is None else str(scope),
            "space": None if space is None else str(space),
            "device": device,
            "round_to": round_to,
            "tp_size": tp_size,
            "method": method,
        }
        body = {"model": model, **{k: v for k, v in asked.items() if v is not None}}
        return self._plan(self._request("POST", "/v1/plans", json=body, headers=_SCHEMA_2))

    def get_plan(self, plan_id: str) -> PruningPlan:
        """A plan that was made before; raises NotFoundError if there is none with this id."""
        return self._plan(self._request("GET", _path_of(plan_id), headers=_SCHEMA_2))

    def get_plan_v1(self, plan_id: str) -> PlanV1:
        """The same plan as a document of schema 1; raises NotFoundError, InputError if schema 1 cannot say it."""
        plan = PlanV1.from_json(self._request("GET", _path_of(plan_id), headers=_SCHEMA_1).content)
        ranking = plan.ranking.model_copy(update={"url": self._absolute(plan.ranking.url)})
        return plan.model_copy(update={"ranking": ranking})

    def ranking(self, plan: PruningPlan) -> bytes:
        """The ranking file that `plan` names, checked against its sha256."""
        return fetch_ranking(plan, self._http)

    def models(self) -> list[dict[str, Any]]:
        """The models that the server has plans for."""
        return self._all_items("/v1/models")

    def model(self, model_id: str) -> dict[str, Any]:
        """One of them; raises NotFoundError."""
        document: dict[str, Any] = self._request("GET", f"/v1/models/{quote(model_id)}").json()
        return document

    def _all_items(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        page: str | None = path
        while page is not None:
            document = self._request("GET", self._below_base(page)).json()
            items += document["items"]
            page = document.get("next")
        return items

    def devices(self) -> list[dict[str, Any]]:
        """The devices that a plan can be made for: the server's catalogue and what was registered."""
        return self._all_items("/v1/devices")

    def device(self, device_id: str) -> dict[str, Any]:
        """One device, with its profile if it was measured; raises NotFoundError."""
        found: dict[str, Any] = self._request("GET", f"/v1/devices/{quote(device_id, safe='')}").json()
        return found

    def register_device(self, profile: Mapping[str, Any]) -> dict[str, Any]:
        """Register a measured profile (`pruning.devices.profile.DeviceProfile`, as JSON types); returns the device.

        Raises InputError if it breaks a rule, or its id is one of the catalogue's.
        """
        registered: dict[str, Any] = self._request("POST", "/v1/devices", json=dict(profile)).json()
        return registered

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, response: httpx.Response) -> PruningPlan:
        plan = PruningPlan.from_json(response.content)
        ranking = plan.ranking.model_copy(update={"url": self._absolute(plan.ranking.url)})
        return plan.model_copy(update={"ranking": ranking})

    def _absolute(self, url: str | None) -> str | None:
        if url is None or not url.startswith("/"):
            return url
        return str(self._http.base_url).rstrip("/") + self._below_base(url)

    def _below_base(self, path: str) -> str:
        """`path` as it follows the client's own URL. A server that knows of the prefix that a proxy puts before its
        paths (`lop serve --root-path`) writes it itself; one that does not leaves it out."""
        base = self._http.base_url.path.rstrip("/")
        return path.removeprefix(base) if base and path.startswith(f"{base}/") else path

    def _request(self, verb: str, path: str, **kwargs: Any) -> httpx.Response:
        return _send(self._http, verb, path, **kwargs)


def _path_of(plan_id: str) -> str:
    return f"/v1/plans/{quote(plan_id, safe='')}"


def _without_none(fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if fields is None else {name: value for name, value in fields.items() if value is not None}


def fetch_ranking(plan: PruningPlan, http: httpx.Client | None = None) -> bytes:
    """Download the ranking file of `plan` from the URL in it.

    Raises:
        CheckpointError: the plan has no URL, or what came is not the file that the plan names.
        ServerError: the server cannot be reached.
    """
    if not plan.ranking.url:
        raise CheckpointError(
            "a plan without a ranking URL needs its ranking file",
            values=f"plan {plan.plan_id}",
            remedy="Pass the file: --ranking FILE, or apply_plan(..., ranking=FILE)",
        )
    if http is None:
        if not plan.ranking.url.startswith(("http://", "https://")):
            raise CheckpointError(
                "a plan whose ranking URL names no server needs its ranking file",
                values=f"plan {plan.plan_id}, url {plan.ranking.url}",
                remedy="Pass the file: --ranking FILE, or apply_plan(..., ranking=FILE)",
            )
        with http_client(plan.ranking.url, timeout=60.0) as own:
            return fetch_ranking(plan, own)
    content = _send(http, "GET", plan.ranking.url).content
    digest = hashlib.sha256(content).hexdigest()
    if digest != plan.ranking.sha256:
        raise CheckpointError(
            "the ranking file must be the one that the plan names",
            values=f"{plan.ranking.url} has sha256 {digest[:12]}, plan names {plan.ranking.sha256[:12]}",
        )
    return content


def _send(http: httpx.Client, verb: str, url: str, **kwargs: Any) -> httpx.Response:
    try:
        response = http.request(verb, url, **kwargs)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(
            "the server must answer",
            values=f"{str(http.base_url).rstrip('/')}{url}: {reason_of(error)}",
            remedy="Start it with `lop serve`, or correct the URL",
        ) from error
    except ValueError as error:  # NaN or infinity in the body
        raise InputError("a request holds finite numbers", values=str(error)) from error
    if response.is_success:
        return response
    raise _problem(response)


def _problem(response: httpx.Response) -> LopError:
    """The error of the tree that a problem+json answer stands for."""
    try:
        problem = response.json()
        detail = str(problem.get("rule") or problem.get("detail") or problem["title"])
        values, remedy = str(problem.get("values") or ""), str(problem.get("remedy") or "")
    except (ValueError, KeyError, AttributeError):
        return ServerError("the server must answer in its own format", values=f"HTTP {response.status_code}")
    if response.status_code == httpx.codes.NOT_FOUND:
        return NotFoundError(detail, values=values, remedy=remedy)
    if response.is_server_error:
        return ServerError(detail, values=values, remedy=remedy)
    nearest, binding = problem.get("nearest_values"), problem.get("binding")
    if isinstance(nearest, dict) and binding in nearest:
        return InfeasibleBudgetError(detail, values=values, remedy=remedy, binding=binding, nearest_values=nearest)
    if problem.get("nearest") is not None:
        return InfeasibleTargetError(detail, values=values, remedy=remedy, nearest=float(problem["nearest"]))
    return InputError(detail, values=values, remedy=remedy)
