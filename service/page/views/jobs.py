"""Jobs: what runs, how far it is, and what can be done about it."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.dependencies import JobsDep, Offset, WhoAsksDep
from service.jobs.settings import KINDS
from service.keys import Asker
from service.page.curves import Line, chart
from service.page.forms import FormDep
from service.page.rendering import PageRoute, page
from service.root_path import seen_from_outside
from service.routes import jobs
from service.routes.jobs import JobId
from storage.records import JobStatus, KeyScope, StagePoint

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_PER_PAGE = 25
_PARTS = 60
"""Points of a line, at most: about one for ten pixels."""
_RETRIED = (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PARKED)


@router.get("/jobs")
def list_jobs(
    request: Request,
    repository: JobsDep,
    status: Annotated[str, Query(max_length=20)] = "",
    kind: Annotated[str, Query(max_length=20)] = "",
    model: Annotated[str, Query(max_length=200)] = "",
    offset: Offset = 0,
) -> Response:
    """Jobs as the API lists them; what is no status or kind filters nothing."""
    chosen = {
        "status": status if status in list(JobStatus) else "",
        "kind": kind if kind in KINDS else "",
        "model": model.strip() if model.isprintable() else "",
    }
    listed = jobs.list_jobs(
        repository,
        request,
        job_status=JobStatus(chosen["status"]) if chosen["status"] else None,
        kind=chosen["kind"] or None,
        model=chosen["model"] or None,
        limit=_PER_PAGE,
        offset=offset,
    )
    return page(
        request,
        "jobs.html",
        listed=listed,
        chosen=chosen,
        kinds=KINDS,
        statuses=list(JobStatus),
        is_live=any(not job.status.is_final for job in listed.items),
    )


@router.get("/jobs/{job_id}")
def show_job(request: Request, job_id: JobId, repository: JobsDep, asker: WhoAsksDep) -> Response:
    """One job: progress, the best found so far, the log, the result."""
    job = jobs.read_job(job_id, repository)
    lines = best_so_far(repository.best_over_steps(job_id, parts=_PARTS))
    picture = chart(lines, x_label="evaluations", y_label="best KL so far, in nats")
    may_change = _may_change(asker, job.asked_by)
    return page(
        request,
        "job.html",
        job=job,
        picture=picture,
        lines=lines,
        may_cancel=may_change and not job.status.is_final and not job.is_cancelling,
        may_retry=may_change and job.status in _RETRIED,
    )


@router.post("/jobs/{job_id}/cancel")
def cancel_job(request: Request, job_id: JobId, repository: JobsDep, asker: WhoAsksDep, _form: FormDep) -> Response:
    """As the API cancels it; then its page again."""
    jobs.cancel_job(job_id, repository, asker, Response())
    return _back_to(request, job_id)


@router.post("/jobs/{job_id}/retry")
def retry_job(request: Request, job_id: JobId, repository: JobsDep, asker: WhoAsksDep, _form: FormDep) -> Response:
    """As the API queues it again; then its page again."""
    jobs.retry_job(job_id, repository, asker)
    return _back_to(request, job_id)


def best_so_far(points: Sequence[StagePoint]) -> list[Line]:
    """For each stage of a search (a target, say) the best KL over the evaluations."""
    stages: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        stages.setdefault(point.stage, []).append((point.done, point.best))
    return [Line.of(stage, line) for stage, line in stages.items()]


def _may_change(asker: Asker, asked_by: str) -> bool:
    """Whether there is a button at all; whether it does anything, the API says."""
    needed = KeyScope.RUN if asker.name == asked_by else KeyScope.ADMIN
    return asker.scope.allows(needed)


def _back_to(request: Request, job_id: str) -> Response:
    return RedirectResponse(seen_from_outside(request, f"/jobs/{job_id}"), status_code=303)
