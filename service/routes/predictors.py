"""Trained predictors."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.dependencies import DEFAULT_LIMIT, CatalogueDep, Limit, Offset, PredictorId
from service.names import NAME_PATTERN
from service.openapi import problems
from service.pagination import page_of
from service.root_path import seen_from_outside
from service.schemas import Page, PredictorResponse

router = APIRouter(prefix="/v1/predictors", tags=["predictors"])

_ModelFilter = Annotated[
    str | None,
    Query(min_length=1, max_length=200, pattern=NAME_PATTERN, description="Only the predictors of this model."),
]


@router.get("", summary="List the predictors", responses=problems(422, 503))
def list_predictors(
    repository: CatalogueDep,
    request: Request,
    model: _ModelFilter = None,
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = 0,
) -> Page[PredictorResponse]:
    """Trained predictors, oldest first; the newest one of a model answers its plan requests."""
    items, place = page_of(
        repository.list_predictors(model),
        limit=limit,
        offset=offset,
        path=seen_from_outside(request, "/v1/predictors"),
        query={"model": model} if model is not None else None,
    )
    return Page[PredictorResponse](items=[PredictorResponse.of(record) for record in items], **place)


@router.get("/{predictor_id}", summary="Read a predictor", responses=problems(404, 422, 503))
def read_predictor(predictor_id: PredictorId, repository: CatalogueDep) -> PredictorResponse:
    """One trained predictor. Predictors never change: training again makes a new one."""
    return PredictorResponse.of(repository.get_predictor(predictor_id))
