"""What the endpoints are given by FastAPI."""

from typing import Annotated, cast

from fastapi import Depends, Path, Query, Request

from service.keys import Asker, KeyRing
from service.metrics import ServiceMetrics
from service.names import NAME_PATTERN
from service.plan_forms import PlanForm, wanted_forms
from service.planner import Planner
from service.resources import Resources
from storage.contract import Artifacts, Catalogue, Datasets, JobCatalogue, Jobs, Plans, Registry, Repository


def _resources(request: Request) -> Resources:
    return cast(Resources, request.app.state.resources)


def _metrics(resources: Annotated[Resources, Depends(_resources)]) -> ServiceMetrics:
    return resources.metrics


def _repository(resources: Annotated[Resources, Depends(_resources)]) -> Repository:
    return resources.repository


def _planner(resources: Annotated[Resources, Depends(_resources)]) -> Planner:
    return resources.planner


def _wanted(request: Request) -> tuple[PlanForm, ...]:
    return wanted_forms(request.headers.getlist("accept"))


RepositoryDep = Annotated[Repository, Depends(_repository)]
ArtifactsDep = Annotated[Artifacts, Depends(_repository)]
CatalogueDep = Annotated[Catalogue, Depends(_repository)]
RegistryDep = Annotated[Registry, Depends(_repository)]
PlansDep = Annotated[Plans, Depends(_repository)]


def _asker(request: Request) -> Asker:
    return cast(Asker, request.scope["lop.asker"])


def _ring(request: Request) -> KeyRing:
    return cast(KeyRing, request.app.state.ring)


JobsDep = Annotated[Jobs, Depends(_repository)]
JobCatalogueDep = Annotated[JobCatalogue, Depends(_repository)]
DatasetsDep = Annotated[Datasets, Depends(_repository)]
ResourcesDep = Annotated[Resources, Depends(_resources)]
WhoAsksDep = Annotated[Asker, Depends(_asker)]
KeyRingDep = Annotated[KeyRing, Depends(_ring)]
MetricsDep = Annotated[ServiceMetrics, Depends(_metrics)]
PlannerDep = Annotated[Planner, Depends(_planner)]
WantedForms = Annotated[tuple[PlanForm, ...], Depends(_wanted)]

ModelId = Annotated[str, Path(min_length=1, max_length=200, pattern=NAME_PATTERN, examples=["llava-reference"])]
PlanId = Annotated[str, Path(min_length=1, max_length=200, pattern=NAME_PATTERN, examples=["0123456789abcdef01234567"])]
RankingSha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", examples=["9f86d081884c7d65" * 4])]
PredictorId = Annotated[str, Path(min_length=1, max_length=200, pattern=NAME_PATTERN, examples=["3f1c9a"])]
DeviceId = Annotated[str, Path(min_length=1, max_length=200, pattern=NAME_PATTERN, examples=["l4"])]

Limit = Annotated[int, Query(ge=1, le=1000, description="Items on one page.")]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1, description="Items to leave out, from the oldest.")]
DEFAULT_LIMIT = 100
