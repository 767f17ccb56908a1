"""Jobs of a server or of a database, in the same words: the documents of `GET /v1/jobs`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pruning.errors import InputError

if TYPE_CHECKING:
    from lop.client import Client
    from storage.contract import Jobs


class JobAccess(Protocol):
    """What `lop job` does. Raises NotFoundError for a job that is not there, ConflictError where it cannot be done."""

    def list(self, *, status: str | None, kind: str | None, model: str | None, limit: int) -> "list[dict[str, Any]]":
        """The newest jobs first."""

    def get(self, job_id: str) -> dict[str, Any]:
        """One job, with its log."""

    def cancel(self, job_id: str) -> dict[str, Any]:
        """The job, as it is then."""

    def retry(self, job_id: str) -> dict[str, Any]:
        """The job, as it is then."""


@contextmanager
def open_jobs(url: str | None, database: str | None) -> Iterator[JobAccess]:
    """Those of the server at `url`, or of the database, by default that of LOP_DATABASE_URL."""
    if url is not None and database is not None:
        raise InputError("jobs are a server's or a database's", values=f"--url {url} and --database")
    if url is not None:
        from lop.client import Client

        with Client(url) as client:
            yield _OfServer(client)
        return
    from service.settings import load_settings
    from storage.sql_repository import open_repository

    with open_repository(load_settings(database_url=database).database_url) as repository:
        yield _OfDatabase(repository)


class _OfServer:
    def __init__(self, client: "Client") -> None:
        self._client = client

    def list(self, *, status: str | None, kind: str | None, model: str | None, limit: int) -> "list[dict[str, Any]]":
        return self._client.jobs(status=status, kind=kind, model=model, limit=limit)

    def get(self, job_id: str) -> dict[str, Any]:
        return self._client.job(job_id).refresh()

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._client.job(job_id).cancel()

    def retry(self, job_id: str) -> dict[str, Any]:
        return self._client.job(job_id).retry()


class _OfDatabase:
    def __init__(self, jobs: "Jobs") -> None:
        self._jobs = jobs

    def list(self, *, status: str | None, kind: str | None, model: str | None, limit: int) -> "list[dict[str, Any]]":
        from service.jobs.responses import JobResponse
        from service.jobs.settings import KINDS
        from storage.records import JobStatus

        if kind is not None and kind not in KINDS:
            raise InputError("a job is of a known kind", values=kind, remedy=f"Known are {', '.join(KINDS)}")
        if status is not None and status not in tuple(JobStatus):
            raise InputError("a job has a known status", values=status, remedy=f"Known are {', '.join(JobStatus)}")
        asked = None if status is None else JobStatus(status)
        found = self._jobs.list_jobs(status=asked, kind=kind, model_id=model, limit=limit)
        return [JobResponse.of(job).model_dump(mode="json") for job in found]

    def get(self, job_id: str) -> dict[str, Any]:
        from service.jobs.responses import JobResponse

        log = self._jobs.last_job_log(job_id, JobResponse.LOG_LINES)
        return JobResponse.of(self._jobs.get_job(job_id), log=log).model_dump(mode="json")

    def cancel(self, job_id: str) -> dict[str, Any]:
        from service.routes.jobs import STALE_AFTER

        self._jobs.cancel_job(job_id, stale_after=STALE_AFTER)
        return self.get(job_id)

    def retry(self, job_id: str) -> dict[str, Any]:
        self._jobs.retry_job(job_id)
        return self.get(job_id)
