"""The first page: the models, and what is known of each."""

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from service.dependencies import DEFAULT_LIMIT, Limit, Offset, RepositoryDep
from service.page.rendering import PageRoute, page
from service.routes import models
from service.schemas import ModelResponse
from storage.contract import Repository

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Known:
    """What is stored of a model, beside the model."""

    model: ModelResponse
    statistics: tuple[str, ...]
    samples: int
    searches: int
    predictor: str | None


@router.get("/")
def list_models(
    request: Request, repository: RepositoryDep, limit: Limit = DEFAULT_LIMIT, offset: Offset = 0
) -> Response:
    """Models as the API lists them."""
    listed = models.list_models(repository, request, limit, offset)
    return page(request, "models.html", listed=listed, known=[_known(repository, model) for model in listed.items])


def _known(repository: Repository, model: ModelResponse) -> Known:
    return Known(
        model,
        statistics=tuple(sorted({record.kind for record in repository.list_statistics(model.id)})),
        samples=repository.count_samples(model.id),
        searches=len(repository.list_search_ids(model.id)),
        predictor=repository.latest_predictor_id(model.id),
    )
