"""Data sets: conversations with their pictures, handed in as an archive and named by their content."""

import asyncio
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from pruning.errors import BusyError, StorageUnavailableError
from pruning.reasons import reason_of
from service.access_log import CLIENT_LEFT
from service.dependencies import DEFAULT_LIMIT, DatasetsDep, Limit, Offset, ResourcesDep, WhoAsksDep
from service.names import NAME_PATTERN
from service.openapi import problems
from service.pagination import page_of
from service.problems import headers_of, plain_problem, problem_of, problem_response
from service.request_limits import too_long
from service.root_path import seen_from_outside
from service.schemas import DatasetResponse, Page

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

ARCHIVE_TYPES = ("application/zip", "application/x-tar", "application/gzip", "application/octet-stream")
"""What an archive may be declared as; what it is, its content says."""

LONGEST_PAUSE_SECONDS = 60.0
"""Between two pieces of an upload."""

DatasetId = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", examples=["9f86d081884c7d65" * 4])]
_Name = Annotated[str, Query(min_length=1, max_length=200, pattern=NAME_PATTERN, description="What people call it.")]
_LOCATION = {"Location": {"description": "Path of the data set.", "schema": {"type": "string"}}}
_ARCHIVE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVE_TYPES},
    }
}


@router.post(
    "",
    summary="Hand in a data set",
    status_code=status.HTTP_201_CREATED,
    response_model=DatasetResponse,
    responses={
        201: {"description": "The data set; that of equal content, if there was one.", "headers": _LOCATION},
        **problems(408, 413, 415, 422, 503),
    },
    openapi_extra=_ARCHIVE,
)
async def add_dataset(
    request: Request, resources: ResourcesDep, asker: WhoAsksDep, name: _Name = "dataset"
) -> Response:
    """A zip or tar file (plain, or by gzip, bzip2 or xz) with one LLaVA-format JSON and the pictures that it names,
    relative to it. Every picture is opened; links, names that leave the archive's folder, and more than the server's
    limits are refused. Each process takes in four at once; one more is answered 503 with `Retry-After`,
    and one of which nothing comes for a minute 408.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in ARCHIVE_TYPES or request.headers.get("content-encoding", "identity").lower() != "identity":
        return _not_an_archive(request, declared)
    most = resources.settings.max_dataset_bytes
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        return too_long(request.scope["path"], most, f"{int(length)} bytes", "LOP_MAX_DATASET_BYTES")
    try:
        with resources.uploads.taken(), TemporaryDirectory(prefix="lop-upload-") as folder:
            archive = FilePath(folder) / "archive"
            if not await _received(request, archive, most):
                return too_long(request.scope["path"], most, "a longer stream", "LOP_MAX_DATASET_BYTES")
            async with resources.unpacking:
                shelf = await run_in_threadpool(lambda: resources.shelf)
                record = await run_in_threadpool(shelf.add_archive, archive, name=name, added_by=asker.name)
    except BusyError as error:
        problem = problem_of(error, request.scope["path"])
        # Uploads take minutes. What is left of the body is not read.
        return problem_response(problem, {**headers_of(error), "Retry-After": "30", "Connection": "close"})
    except TimeoutError:
        problem = plain_problem(
            status.HTTP_408_REQUEST_TIMEOUT,
            request.scope["path"],
            rule=f"an upload goes on within {LONGEST_PAUSE_SECONDS:g} seconds",
            remedy="Send it again",
        )
        return problem_response(problem, {"Connection": "close"})
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)  # which nobody hears
    except OSError as error:
        raise StorageUnavailableError(
            "the server needs room for an archive and what is in it",
            values=reason_of(error),
            remedy="Free some disk space, or set TMPDIR to another disk",
        ) from error
    content = DatasetResponse.of(record).model_dump_json()
    location = seen_from_outside(request, f"/v1/datasets/{record.id}")
    return Response(content, status.HTTP_201_CREATED, {"Location": location}, media_type="application/json")


async def _received(request: Request, archive: FilePath, most: int) -> bool:
    """Whether the body, which is written to `archive`, has at most `most` bytes."""
    size = 0
    stream = request.stream()
    with archive.open("xb") as file:
        while True:
            # A connection that says nothing any more, of a laptop that sleeps, must not keep its place for ever.
            async with asyncio.timeout(LONGEST_PAUSE_SECONDS):
                piece = await anext(stream, None)
            if piece is None:
                break
            size += len(piece)
            if size > most:
                return False
            await run_in_threadpool(file.write, piece)  # a slow disk must not hold the event loop
    return True


def _not_an_archive(request: Request, declared: str) -> Response:
    problem = plain_problem(
        415,
        request.scope["path"],
        rule="the request body must be an archive, as it is",
        values=repr(declared[:100]) if declared else "no Content-Type",
        remedy=f"Send Content-Type: {ARCHIVE_TYPES[0]} or {ARCHIVE_TYPES[1]}, without Content-Encoding",
    )
    return problem_response(problem, {"Accept": ", ".join(ARCHIVE_TYPES), "Connection": "close"})


@router.get("", summary="List the data sets", responses=problems(422, 503))
def list_datasets(
    datasets: DatasetsDep, request: Request, limit: Limit = DEFAULT_LIMIT, offset: Offset = 0
) -> Page[DatasetResponse]:
    """Data sets that were handed in, oldest first."""
    path = seen_from_outside(request, "/v1/datasets")
    items, place = page_of(datasets.list_datasets(), limit=limit, offset=offset, path=path)
    return Page[DatasetResponse](items=[DatasetResponse.of(record) for record in items], **place)


@router.get("/{dataset_id}", summary="Read a data set", responses=problems(404, 422, 503))
def read_dataset(dataset_id: DatasetId, datasets: DatasetsDep) -> DatasetResponse:
    """One data set. Data sets never change."""
    return DatasetResponse.of(datasets.get_dataset(dataset_id))
