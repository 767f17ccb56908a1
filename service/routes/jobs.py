"""Jobs: asked for, watched, cancelled and queued again."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from pruning.errors import NotFoundError, StorageUnavailableError
from service.dependencies import (
    DEFAULT_LIMIT,
    JobCatalogueDep,
    JobsDep,
    KeyRingDep,
    Limit,
    Offset,
    ResourcesDep,
    WhoAsksDep,
)
from service.jobs.checks import check_job
from service.jobs.responses import JobEventData, JobResponse
from service.jobs.settings import KINDS, JobSettings
from service.names import NAME_PATTERN
from service.openapi import problems
from service.pagination import next_page
from service.request_limits import JsonBodyRoute
from service.root_path import seen_from_outside
from service.schemas import Page
from storage.contract import Jobs
from storage.records import JobRecord, JobStatus, NewJob

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonBodyRoute)
reading = APIRouter(prefix="/v1/jobs", tags=["jobs"])

STALE_AFTER = timedelta(seconds=60)
"""Without a sign of life from its worker, a job that is cancelled does not wait for it: a worker's own default."""
POLL_SECONDS = 0.5
"""Between two looks for new events of a job that somebody watches."""

JobId = Annotated[str, Path(min_length=1, max_length=200, pattern=NAME_PATTERN, examples=["5f0c"])]
_Filter = Annotated[str | None, Query(min_length=1, max_length=200, pattern=NAME_PATTERN)]
_IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x20-\x7e]+$",
        description="Of those that one asker sends, equal ones mean one job: a request with it may be repeated.",
    ),
]
_LOCATION = {"Location": {"description": "Path of the job.", "schema": {"type": "string"}}}


@router.post(
    "",
    summary="Ask for a job",
    status_code=status.HTTP_201_CREATED,
    responses={
        200: {"description": "The job that an equal request with this idempotency key got.", "model": JobResponse},
        201: {"description": "The job, which waits for a worker.", "headers": _LOCATION},
        **problems(404, 409, 413, 415, 422, 503),
    },
)
def ask_for_job(
    settings: Annotated[JobSettings, Body()],
    catalogue: JobCatalogueDep,
    jobs: JobsDep,
    asker: WhoAsksDep,
    resources: ResourcesDep,
    request: Request,
    response: Response,
    idempotency_key: _IdempotencyKey = None,
) -> JobResponse:
    """Registering a model, measuring, searching, training, applying or recovering takes longer than a request: a
    worker does it.

    Data are named by their content (`POST /v1/datasets`), models by id, checkpoints by the name of a folder under the
    worker's roots; nothing can name a path.
    """
    model_id = check_job(settings, catalogue)
    document = settings.model_dump(mode="json")
    job, is_new = jobs.add_job(NewJob(settings.kind, model_id, document, asker.name, idempotency_key))
    resources.tracing.note_job(job.id)
    response.headers["Location"] = seen_from_outside(request, f"/v1/jobs/{job.id}")
    if not is_new:
        response.status_code = status.HTTP_200_OK
    return _response(job, jobs)


@reading.get("", summary="List the jobs", responses=problems(422, 503))
def list_jobs(
    jobs: JobsDep,
    request: Request,
    job_status: Annotated[JobStatus | None, Query(alias="status", description="Only those of this status.")] = None,
    kind: Annotated[str | None, Query(pattern=f"^({'|'.join(KINDS)})$", description="Only those of this kind.")] = None,
    model: _Filter = None,
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = 0,
) -> Page[JobResponse]:
    """Jobs, newest first; without their logs."""
    found = jobs.list_jobs(status=job_status, kind=kind, model_id=model, limit=limit, offset=offset)
    total = jobs.count_jobs(status=job_status, kind=kind, model_id=model)
    asked = {"status": job_status and job_status.value, "kind": kind, "model": model}
    query = {name: value for name, value in asked.items() if value is not None}
    path = seen_from_outside(request, "/v1/jobs")
    link = next_page(total, limit=limit, offset=offset, path=path, query=query)
    items = [JobResponse.of(job) for job in found]
    return Page[JobResponse](items=items, total=total, limit=limit, offset=offset, next=link)


@reading.get("/{job_id}", summary="Read a job", responses=problems(404, 422, 503))
def read_job(job_id: JobId, jobs: JobsDep) -> JobResponse:
    """How far a job is, the last lines of its log, and what came of it."""
    return _response(jobs.get_job(job_id), jobs)


@reading.delete(
    "/{job_id}",
    summary="Cancel a job",
    responses={
        202: {"description": "Its worker stops at its next step, such as an evaluation.", "model": JobResponse},
        **problems(404, 409, 422, 503),
    },
)
def cancel_job(job_id: JobId, jobs: JobsDep, asker: WhoAsksDep, response: Response) -> JobResponse:
    """A job that waits is cancelled at once; one that runs stops at its next step, and what it stored stays. One that
    is cancelled stays so; one that ended otherwise cannot be cancelled.
    """
    asker.check_may_change(jobs.get_job(job_id))
    job = jobs.cancel_job(job_id, stale_after=STALE_AFTER)
    if job.status is JobStatus.RUNNING:
        response.status_code = status.HTTP_202_ACCEPTED
    return _response(job, jobs)


@reading.post("/{job_id}/retry", summary="Queue a job again", responses=problems(404, 409, 422, 503))
def retry_job(job_id: JobId, jobs: JobsDep, asker: WhoAsksDep) -> JobResponse:
    """For a job that failed, was cancelled or parked. A search goes on from the samples that it stored."""
    asker.check_may_change(jobs.get_job(job_id))
    return _response(jobs.retry_job(job_id), jobs)


async def _watched(job_id: JobId, jobs: JobsDep, resources: ResourcesDep) -> AsyncIterator[JobRecord]:
    """The job, and a place among the streams until this one has ended."""
    with resources.event_streams.opened():
        yield await run_in_threadpool(jobs.get_job, job_id)


@reading.get(
    "/{job_id}/events",
    summary="Watch a job",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "Server-sent events: `status`, `progress` and `log`, each with a number as its id; their "
            "data are a `JobEventData` as JSON. The stream ends when the job does, or the key opens nothing any more.",
            "content": {"text/event-stream": {"example": f"event: progress\ndata: {JobEventData.EXAMPLE}\nid: 5\n\n"}},
        },
        **problems(404, 422, 503),
    },
)
async def watch_job(
    job: Annotated[JobRecord, Depends(_watched)],
    jobs: JobsDep,
    resources: ResourcesDep,
    ring: KeyRingDep,
    asker: WhoAsksDep,
    request: Request,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=2**62, description="The number of the last event that was seen: those after it are sent."),
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happened to the job, from its beginning or after `Last-Event-ID`, and then as it happens.

    It ends early when the key that it was asked for with is revoked or expires, when the job is removed with its
    model, and when the server stops. While the database is away there is nothing to tell; then it goes on.
    """
    if request.scope.get("lop.is_head", False):
        return
    seen = last_event_id or 0
    while not resources.is_stopping():
        try:
            if not await run_in_threadpool(ring.is_still_good, asker):
                return
            # Read before the events: what happens in between is told now, and the end is seen next time.
            ended = (await run_in_threadpool(jobs.get_job, job.id)).status.is_final
            news = await run_in_threadpool(jobs.list_job_events, job.id, after=seen)
        except NotFoundError:
            return
        except StorageUnavailableError:
            # The answer has begun: an error now would only break the connection.
            ended, news = False, []
        for event in news:
            seen = event.number
            data = JobEventData.of(event)
            yield ServerSentEvent(event=event.kind.value, id=str(event.number), data=data)
        if ended:
            return
        await asyncio.sleep(POLL_SECONDS)


def _response(job: JobRecord, jobs: Jobs) -> JobResponse:
    return JobResponse.of(job, log=jobs.last_job_log(job.id, JobResponse.LOG_LINES))
