"""A job that was asked for, to wait for and to look at: `Client.search` and `Client.job` give one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx

from pruning.errors import JobError, LopServerError

FINAL = ("done", "failed", "cancelled", "parked")
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 300.0
"""How long a server that does not answer is waited for, in the middle of waiting for a job: servers restart."""

OnProgress = Callable[[dict[str, Any]], None]
"""Told of `progress` whenever it has changed: done, total, stage, best, seconds_left; of a recovery also
loss."""


class _Handle:
    """What is known of a job, as of the last look at it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.id: str = document["id"]
        self._path = f"/v1/jobs/{quote(self.id, safe='')}"

    @property
    def status(self) -> str:
        """queued, running, done, failed, cancelled or parked."""
        return str(self.document["status"])

    def _result(self) -> dict[str, Any]:
        """Of a job that has ended; raises JobError unless it is done."""
        if self.status == "done":
            result: dict[str, Any] = self.document["result"]
            return result
        raise JobError(
            "a job that is waited for ends well",
            values=f"job {self.id} is {self.status}: {self.document['error'] or 'somebody cancelled it'}",
            remedy=f"See `lop job show {self.id}`; `lop job retry {self.id}` queues it again",
            job=self.document,
        )

    def _tell(self, told: Any, on_progress: OnProgress | None) -> Any:
        progress = self.document["progress"]
        if on_progress is not None and progress is not None and progress != told:
            on_progress(progress)
        return progress


class JobHandle(_Handle):
    """A job on a server. `document` is what the server said of it last."""

    def __init__(self, request: Callable[..., httpx.Response], document: dict[str, Any]) -> None:
        super().__init__(document)
        self._request = request

    def refresh(self) -> dict[str, Any]:
        """The job's document, as it is now."""
        self.document = self._request("GET", self._path).json()
        return self.document

    def progress(self) -> dict[str, Any] | None:
        """done, total, stage, best and seconds_left, as they are now; None before a worker has begun."""
        progress: dict[str, Any] | None = self.refresh()["progress"]
        return progress

    def wait(
        self,
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = POLL_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> dict[str, Any]:
        """Wait until the job has ended; returns its result.

        Raises:
            JobError: it failed, was cancelled or parked.
            TimeoutError: it has not ended in time; it goes on.
            LopServerError: the server has not answered for some minutes.
        """
        started = answered = time.monotonic()
        told = None
        while True:
            try:
                self.refresh()
                answered = time.monotonic()
            except LopServerError:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
            told = self._tell(told, on_progress)
            if self.status in FINAL:
                return self._result()
            if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                raise TimeoutError(f"job {self.id} is {self.status} after {timeout_seconds:g} s")
            time.sleep(poll_seconds)

    def cancel(self) -> dict[str, Any]:
        """Cancel the job: one that runs stops at its next step. Raises ConflictError if it has ended otherwise."""
        self.document = self._request("DELETE", self._path).json()
        return self.document

    def retry(self) -> dict[str, Any]:
        """Queue it again; raises ConflictError unless it failed, was cancelled or parked."""
        self.document = self._request("POST", f"{self._path}/retry").json()
        return self.document


class AsyncJobHandle(_Handle):
    """As `JobHandle`, for an event loop."""

    def __init__(self, request: Callable[..., Awaitable[httpx.Response]], document: dict[str, Any]) -> None:
        super().__init__(document)
        self._request = request

    async def refresh(self) -> dict[str, Any]:
        """See `JobHandle.refresh`."""
        self.document = (await self._request("GET", self._path)).json()
        return self.document

    async def progress(self) -> dict[str, Any] | None:
        """See `JobHandle.progress`."""
        progress: dict[str, Any] | None = (await self.refresh())["progress"]
        return progress

    async def wait(
        self,
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = POLL_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> dict[str, Any]:
        """See `JobHandle.wait`."""
        started = answered = time.monotonic()
        told = None
        while True:
            try:
                await self.refresh()
                answered = time.monotonic()
            except LopServerError:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
            told = self._tell(told, on_progress)
            if self.status in FINAL:
                return self._result()
            if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                raise TimeoutError(f"job {self.id} is {self.status} after {timeout_seconds:g} s")
            await asyncio.sleep(poll_seconds)

    async def cancel(self) -> dict[str, Any]:
        """See `JobHandle.cancel`."""
        self.document = (await self._request("DELETE", self._path)).json()
        return self.document

    async def retry(self) -> dict[str, Any]:
        """See `JobHandle.retry`."""
        self.document = (await self._request("POST", f"{self._path}/retry")).json()
        return self.document
