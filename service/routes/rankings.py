"""Ranking files by their sha256: the way to those that belong to a method and not to a model."""

from fastapi import APIRouter, Request, Response

from service.dependencies import ArtifactsDep, RankingSha256
from service.rankings import RANKING_RESPONSES, find_ranking, ranking_response

router = APIRouter(prefix="/v1/rankings", tags=["rankings"])


@router.get(
    "/{sha256}",
    summary="Download a ranking",
    response_class=Response,
    responses=RANKING_RESPONSES,
)
def read_ranking(sha256: RankingSha256, repository: ArtifactsDep, request: Request) -> Response:
    """The safetensors file that a plan's widths count along: `ranking.url` of plans whose method ranks channels itself.
    A file is named by its content, so it never changes.
    """
    artifact = find_ranking(repository, sha256)
    return ranking_response(sha256, lambda: artifact, request, cache_control="private, max-age=31536000, immutable")
