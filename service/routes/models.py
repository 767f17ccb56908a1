"""Models, and the ranking file of each."""

from fastapi import APIRouter, Request, Response

from service.dependencies import DEFAULT_LIMIT, CatalogueDep, Limit, ModelId, Offset, RegistryDep
from service.openapi import problems
from service.pagination import page_of
from service.ranking_urls import model_ranking_url
from service.rankings import RANKING_RESPONSES, ranking_response
from service.root_path import seen_from_outside
from service.schemas import ModelResponse, Page
from storage.records import ModelRecord

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List the models", responses=problems(422, 503))
def list_models(
    repository: CatalogueDep, request: Request, limit: Limit = DEFAULT_LIMIT, offset: Offset = 0
) -> Page[ModelResponse]:
    """Registered models, oldest first."""
    path = seen_from_outside(request, "/v1/models")
    items, place = page_of(repository.list_models(), limit=limit, offset=offset, path=path)
    return Page[ModelResponse](items=[_response(model, request) for model in items], **place)


@router.get(
    # Before the model itself: ids may hold slashes, as in `llava-hf/llava-1.5-7b-hf`.
    "/{model_id:path}/ranking",
    summary="Download a model's ranking",
    response_class=Response,
    responses=RANKING_RESPONSES,
)
def read_ranking(model_id: ModelId, repository: RegistryDep, request: Request) -> Response:
    """The safetensors file that a plan's widths count along. Its sha256 is the one that plans name."""
    sha256 = repository.get_model(model_id).ranking_sha256
    return ranking_response(
        sha256,
        lambda: repository.get_artifact(sha256),
        request,
        cache_control="private, max-age=3600, must-revalidate",
    )


@router.get("/{model_id:path}", summary="Read a model", responses=problems(404, 422, 503))
def read_model(model_id: ModelId, repository: CatalogueDep, request: Request) -> ModelResponse:
    """One registered model. Models never change: a new fine-tune is a new id."""
    return _response(repository.get_model(model_id), request)


def _response(model: ModelRecord, request: Request) -> ModelResponse:
    return ModelResponse.of(model, ranking_url=seen_from_outside(request, model_ranking_url(model.id)))
