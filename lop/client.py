"""The HTTP client: a target in, a plan out; a job in, its result out.

Tests hand in a transport that calls the application without a socket (`httpx` documents how).
"""

import hashlib
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from lop.asking import (
    SCHEMA_1,
    SCHEMA_2,
    UPLOAD,
    UPLOAD_SECONDS,
    check_source,
    dataset_named,
    headers_with_key,
    jobs_query,
    packed_data,
    plan_body,
    recover_body,
    recover_sources,
    search_body,
)
from lop.http_clients import http_client
from lop.job_handle import JobHandle
from lop.sending import DEFAULT_RETRIES, UNSENT, checked, pause_after, pauses, unreachable
from pruning.errors import CheckpointError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_v1 import PlanV1
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget

DEFAULT_URL = "http://127.0.0.1:8000"


class Client:
    """Talks to one LOP server. Use as a context manager, or call `close`; safe to share between threads.

    Args:
        url: where the server listens.
        key: a key of `lop key create`, where the server has any; by default that of LOP_KEY.
        timeout_seconds: for each request.
        retries: further tries of a request that a server answers with 429, 502 or 503, each after a longer pause.
        transport: replaces the network, for tests.

    Raises what `lop.http_clients.http_client` raises of the URL and of the environment's proxies.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        retries: int = DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = headers_with_key(os.environ.get("LOP_KEY") if key is None else key)
        self._http = http_client(url, base_url=url, timeout=timeout_seconds, transport=transport, headers=headers)
        self._retries = retries

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
        after_recovery: bool = False,
    ) -> PruningPlan:
        """Request the plan of `model` for a sparsity, or for a budget; the ranking's URL in it is absolute.

        Args:
            model: id of a registered model.
            sparsity: fraction of `scope` to remove.
            budget: instead of a sparsity, what the model may cost: `pruning.planning.workload.Budget`, or its fields.
                Neither of the two: the device's memory.
            scope: what the sparsity counts: `ffn` by default, in other spaces than that `decoder`.
            space: what may be changed: `ffn` (widths, the default), `attention`, `layers` or `all`; for a budget also
                `bits` or `all,bits`.
            device: id of a device. It prices latency; with a budget its memory is a limit too.
            round_to: widths are multiples of this.
            tp_size: devices that share each layer: it divides every width.
            method: how widths are chosen; by default by the best that the server's data allows.
            after_recovery: the plan that was best once it was trained: it counts on that training (docs/recovery.md).

        Raises:
            InputError: the request breaks a rule (its subclasses NotFoundError, InfeasibleTargetError and
                InfeasibleBudgetError included).
            AccessError: the server wants a key, or another one.
            LopServerError: there is no such server, or it is out of order.
        """
        body = plan_body(
            model,
            sparsity=sparsity,
            budget=budget,
            scope=scope,
            space=space,
            device=device,
            round_to=round_to,
            tp_size=tp_size,
            method=method,
            after_recovery=after_recovery,
        )
        return self._plan(self._request("POST", "/v1/plans", json=body, headers=SCHEMA_2))

    def get_plan(self, plan_id: str) -> PruningPlan:
        """A plan that was made before; raises NotFoundError if there is none with this id."""
        return self._plan(self._request("GET", _path_of(plan_id), headers=SCHEMA_2))

    def get_plan_v1(self, plan_id: str) -> PlanV1:
        """The same plan as a document of schema 1; raises NotFoundError, InputError if schema 1 cannot say it."""
        plan = PlanV1.from_json(self._request("GET", _path_of(plan_id), headers=SCHEMA_1).content)
        ranking = plan.ranking.model_copy(update={"url": self._absolute(plan.ranking.url)})
        return plan.model_copy(update={"ranking": ranking})

    def ranking(self, plan: PruningPlan) -> bytes:
        """The ranking file that `plan` names, checked against its sha256."""
        # A key goes to its own server, whatever address a plan's document has.
        is_own = plan.ranking.url is None or plan.ranking.url.startswith(("/", f"{self._base}/"))
        return fetch_ranking(plan, self._http if is_own else None)

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

        Raises InputError if it breaks a rule, ConflictError if its id is one of the catalogue's.
        """
        registered: dict[str, Any] = self._request("POST", "/v1/devices", json=dict(profile)).json()
        return registered

    def upload(self, data: str | Path, *, name: str | None = None, conversations: int | None = None) -> dict[str, Any]:
        """Hand in the first `conversations` of a LLaVA-format file, with their pictures; returns the data set.

        Content that the server has already is not stored again. Raises DatasetError for a file that cannot be used.
        """
        path = Path(data)
        with packed_data(path, conversations) as packed:
            content = packed.read_bytes()
        query = {"name": (name or path.name)[:200]}
        found: dict[str, Any] = self._request(
            "POST", "/v1/datasets", params=query, content=content, headers=UPLOAD, timeout=UPLOAD_SECONDS
        ).json()
        return found

    def submit(self, job: Mapping[str, Any], *, idempotency_key: str | None = None) -> JobHandle:
        """Ask for a job: `kind` and its settings, as `POST /v1/jobs` takes them.

        Equal keys of one asker mean one job; by default each call has its own, so that a try that got lost on its way
        asks for no second one.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        document = self._request("POST", "/v1/jobs", json=dict(job), headers=headers).json()
        return JobHandle(self._request, document)

    def search(
        self,
        *,
        model: str,
        data: str | Path | None = None,
        dataset: str | None = None,
        sparsities: Sequence[float],
        idempotency_key: str | None = None,
        **settings: Any,
    ) -> JobHandle:
        """Have a worker search the best configurations for some sparsities, and train the model's predictor.

        Args:
            model: id of a registered model.
            data: a LLaVA-format file, which is handed in; or instead of it
            dataset: the id of a data set that the server has.
            sparsities: targets.
            settings: the others of `service.jobs.settings.SearchJob`: evaluations, space, seed, ..., and
                `latency={"device": ID}` to search for what is fast on a device, too.

        Raises as `upload` and `plan`.
        """
        check_source(data, dataset)
        found = dataset if data is None else self.upload(data)["id"]
        return self.submit(search_body(model, str(found), sparsities, settings), idempotency_key=idempotency_key)

    def recover(
        self,
        *,
        plan: str,
        data: str | Path,
        selection: str | Path | None = None,
        validation: str | Path | None = None,
        recipe: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        **settings: Any,
    ) -> JobHandle:
        """Have a worker cut a model as a plan says and train what is left; what it writes is never worse than the cut.

        Args:
            plan: id of a plan of the server.
            data: what is trained on: a LLaVA-format file, which is handed in, or the id of a data set that is there.
            selection: what decides; by default a part of `data` that is kept back.
            validation: what only reports.
            recipe: how it is trained, `recovery.recipe.Recipe`'s fields: mode, losses, minutes, ...
            settings: the others of `service.jobs.settings.RecoverJob`: reconstruct, conversations.

        Raises as `upload` and `plan`.
        """
        sources = recover_sources(data, selection, validation)
        parts = {part: dataset_named(x) or str(self.upload(x)["id"]) for part, x in sources.items()}
        return self.submit(recover_body(plan, parts, recipe, settings), idempotency_key=idempotency_key)

    def job(self, job_id: str) -> JobHandle:
        """A job that was asked for before; raises NotFoundError."""
        return JobHandle(self._request, self._request("GET", f"/v1/jobs/{quote(job_id, safe='')}").json())

    def jobs(
        self, *, status: str | None = None, kind: str | None = None, model: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The documents of the newest `limit` jobs of that status, kind and model."""
        page = self._request("GET", "/v1/jobs", params=jobs_query(status, kind, model, limit)).json()
        items: list[dict[str, Any]] = page["items"]
        return items

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
        return self._base + self._below_base(url)

    @property
    def _base(self) -> str:
        return str(self._http.base_url).rstrip("/")

    def _below_base(self, path: str) -> str:
        """`path` as it follows the client's own URL. A server that knows of the prefix that a proxy puts before its
        paths (`lop serve --root-path`) writes it itself; one that does not leaves it out."""
        base = self._http.base_url.path.rstrip("/")
        return path.removeprefix(base) if base and path.startswith(f"{base}/") else path

    def _request(self, verb: str, path: str, **kwargs: Any) -> httpx.Response:
        return _send(self._http, verb, path, self._retries, **kwargs)


def _path_of(plan_id: str) -> str:
    return f"/v1/plans/{quote(plan_id, safe='')}"


def fetch_ranking(plan: PruningPlan, http: httpx.Client | None = None) -> bytes:
    """Download the ranking file of `plan` from the URL in it.

    Raises:
        CheckpointError: the plan has no URL, or what came is not the file that the plan names.
        LopServerError: the server cannot be reached.
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
        with http_client(plan.ranking.url, timeout=60.0, headers=_key_for(plan.ranking.url)) as own:
            return fetch_ranking(plan, own)
    content = _send(http, "GET", plan.ranking.url, DEFAULT_RETRIES).content
    digest = hashlib.sha256(content).hexdigest()
    if digest != plan.ranking.sha256:
        raise CheckpointError(
            "the ranking file must be the one that the plan names",
            values=f"{plan.ranking.url} has sha256 {digest[:12]}, plan names {plan.ranking.sha256[:12]}",
        )
    return content


def _key_for(url: str) -> dict[str, str]:
    """LOP_KEY, for addresses of LOP_URL and no others."""
    base = os.environ.get("LOP_URL", "").rstrip("/")
    return headers_with_key(os.environ.get("LOP_KEY")) if base and url.startswith(f"{base}/") else {}


def _send(http: httpx.Client, verb: str, url: str, retries: int, **kwargs: Any) -> httpx.Response:
    waits = pauses(retries)
    while True:
        try:
            response = http.request(verb, url, **kwargs)
        except UNSENT as error:
            raise unreachable(http, url, error) from error
        wait = pause_after(response, pause) if (pause := next(waits, None)) is not None else None
        if wait is None:
            return checked(response)
        time.sleep(wait)
