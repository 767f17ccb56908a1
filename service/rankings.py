"""Ranking files, and how they are handed out."""

from collections.abc import Callable
from typing import Any

from fastapi import Request, Response, status

from pruning.errors import CheckpointError, NotFoundError
from pruning.planning.ranking import Ranking
from service.conditional import matches, strong_etag
from service.openapi import problems
from storage.contract import Artifacts
from storage.records import Artifact

RANKING_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The ranking file: per layer the order in which channels are kept.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "ETag": {"description": "The file's sha256, a strong entity tag.", "schema": {"type": "string"}},
            "Content-Length": {"description": "The file's size in bytes.", "schema": {"type": "integer"}},
        },
    },
    304: {"description": "The client's copy is current."},
    **problems(404, 422, 503),
}


def find_ranking(repository: Artifacts, sha256: str) -> Artifact:
    """The ranking file with this sha256; raises NotFoundError if there is none.

    Predictors and statistics are artifacts too, and nothing marks a ranking but its content: so that is parsed.
    """
    remedy = "Take the address from a plan's ranking.url"
    try:
        artifact = repository.get_artifact(sha256)
        Ranking.from_bytes(artifact.content)
    except (NotFoundError, CheckpointError) as error:
        raise NotFoundError("no ranking is stored under this sha256", values=repr(sha256), remedy=remedy) from error
    return artifact


def ranking_response(sha256: str, read: Callable[[], Artifact], request: Request, *, cache_control: str) -> Response:
    """The file; 304 to who has it, without reading it."""
    etag = strong_etag(sha256)
    headers = {"ETag": etag, "Cache-Control": cache_control, "X-Content-Type-Options": "nosniff"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    artifact = read()
    return Response(artifact.content, media_type=artifact.media_type, headers=headers)
