"""The client for an event loop: what `lop.client.Client` does, for plans, data sets and jobs."""

import asyncio
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from lop.asking import (
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
from lop.http_clients import async_http_client
from lop.job_handle import AsyncJobHandle
from lop.sending import DEFAULT_RETRIES, UNSENT, checked, pause_after, pauses, unreachable
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget

DEFAULT_URL = "http://127.0.0.1:8000"


class AsyncClient:
    """As `lop.client.Client`, with the same arguments. Use as an asynchronous context manager, or call `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        retries: int = DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = headers_with_key(os.environ.get("LOP_KEY") if key is None else key)
        self._http = async_http_client(url, base_url=url, timeout=timeout_seconds, transport=transport, headers=headers)
        self._retries = retries

    async def plan(
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
        """See `Client.plan`; the ranking's URL in it is as the server gives it."""
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
        return PruningPlan.from_json((await self._request("POST", "/v1/plans", json=body, headers=SCHEMA_2)).content)

    async def upload(
        self, data: str | Path, *, name: str | None = None, conversations: int | None = None
    ) -> dict[str, Any]:
        """See `Client.upload`."""
        path = Path(data)

        def packed() -> bytes:
            with packed_data(path, conversations) as file:
                return file.read_bytes()

        content = await asyncio.to_thread(packed)
        query = {"name": (name or path.name)[:200]}
        found: dict[str, Any] = (
            await self._request(
                "POST", "/v1/datasets", params=query, content=content, headers=UPLOAD, timeout=UPLOAD_SECONDS
            )
        ).json()
        return found

    async def submit(self, job: Mapping[str, Any], *, idempotency_key: str | None = None) -> AsyncJobHandle:
        """See `Client.submit`."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        document = (await self._request("POST", "/v1/jobs", json=dict(job), headers=headers)).json()
        return AsyncJobHandle(self._request, document)

    async def search(
        self,
        *,
        model: str,
        data: str | Path | None = None,
        dataset: str | None = None,
        sparsities: Sequence[float],
        idempotency_key: str | None = None,
        **settings: Any,
    ) -> AsyncJobHandle:
        """See `Client.search`."""
        check_source(data, dataset)
        found = dataset if data is None else (await self.upload(data))["id"]
        body = search_body(model, str(found), sparsities, settings)
        return await self.submit(body, idempotency_key=idempotency_key)

    async def recover(
        self,
        *,
        plan: str,
        data: str | Path,
        selection: str | Path | None = None,
        validation: str | Path | None = None,
        recipe: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        **settings: Any,
    ) -> AsyncJobHandle:
        """See `Client.recover`."""
        sources = recover_sources(data, selection, validation)
        parts = {part: dataset_named(x) or str((await self.upload(x))["id"]) for part, x in sources.items()}
        return await self.submit(recover_body(plan, parts, recipe, settings), idempotency_key=idempotency_key)

    async def job(self, job_id: str) -> AsyncJobHandle:
        """See `Client.job`."""
        document = (await self._request("GET", f"/v1/jobs/{quote(job_id, safe='')}")).json()
        return AsyncJobHandle(self._request, document)

    async def jobs(
        self, *, status: str | None = None, kind: str | None = None, model: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """See `Client.jobs`."""
        page = (await self._request("GET", "/v1/jobs", params=jobs_query(status, kind, model, limit))).json()
        items: list[dict[str, Any]] = page["items"]
        return items

    async def _request(self, verb: str, path: str, **kwargs: Any) -> httpx.Response:
        waits = pauses(self._retries)
        while True:
            try:
                response = await self._http.request(verb, path, **kwargs)
            except UNSENT as error:
                raise unreachable(self._http, path, error) from error
            wait = pause_after(response, pause) if (pause := next(waits, None)) is not None else None
            if wait is None:
                return checked(response)
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
