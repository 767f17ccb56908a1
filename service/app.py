"""The application factory. Nothing is opened here: the database on the first request that needs it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from pruning.devices.profile import MAX_PROFILE_BYTES
from pruning.errors import LopError
from service.access_log import AccessLog, RouteNote
from service.authentication import Authentication
from service.head_requests import HeadAsGet
from service.host_names import HostNames
from service.keys import KeyRing
from service.known_answers import KnownAnswers
from service.openapi import install_openapi
from service.page.views.every import VIEWS
from service.problems import install_problem_handlers
from service.request_limits import RequestSizeLimit
from service.resources import Resources
from service.root_path import RootPath
from service.routes import datasets, devices, health, jobs, metrics, models, plans, predictors, rankings
from service.settings import Settings
from service.tracing import NOTHING_TRACED, Tracing
from storage.contract import Repository

_logger = logging.getLogger("service")

_DESCRIPTION = """Per-layer pruning plans for multimodal LLMs (LOP, arXiv 2506.12826).

Errors are application/problem+json (RFC 9457): `rule` is what was broken, `values` what broke it, `remedy` what to do.
Lists take `limit` and `offset`; `next` is the path of the following page."""


def create_app(
    settings: Settings, *, repository: Repository | None = None, tracing: Tracing = NOTHING_TRACED
) -> FastAPI:
    """The service over `settings.database_url`, or over an open `repository`."""
    app = FastAPI(
        title="LOP service",
        version=version("lop-service"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # service.page.views.reference: FastAPI's own page loads Swagger UI from elsewhere
        redoc_url=None,
    )
    resources = app.state.resources = Resources(settings, repository, tracing)
    ring = app.state.ring = KeyRing(
        lambda: resources.repository, is_loopback=settings.is_loopback, limit=settings.key_limit
    )
    install_problem_handlers(app)
    install_openapi(app)
    for routes in (plans, models, rankings, predictors, devices, datasets, jobs, health, metrics):
        app.include_router(routes.router)
    for view in VIEWS:
        app.include_router(view)
    app.include_router(plans.reading)
    app.include_router(devices.reading)
    app.include_router(jobs.reading)
    app.add_middleware(KnownAnswers, read_mark=resources.commit_mark, paths=(plans.router.prefix,))
    app.add_middleware(RouteNote)
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        RequestSizeLimit,
        max_bytes=settings.max_request_bytes,
        larger={devices.router.prefix: MAX_PROFILE_BYTES},
        streamed=(datasets.router.prefix,),
    )
    app.add_middleware(Authentication, ring=ring)
    if settings.is_loopback or settings.allowed_host_names:
        app.add_middleware(HostNames, allowed=settings.allowed_host_names, ring=ring)
    app.add_middleware(RootPath, root_path=settings.root_path)
    app.add_middleware(AccessLog, metrics=resources.metrics)
    tracing.watch(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load predictors before the first request, which would otherwise wait for them."""
    await asyncio.to_thread(_preload, app.state.resources)
    try:
        yield
    finally:
        app.state.resources.close()


def _preload(resources: Resources) -> None:
    try:
        resources.planner.preload()
    except LopError as error:
        _logger.warning("no predictor was loaded ahead of the first request: %s", error)
    except Exception:
        # Whatever it is, the request that needs the predictor will report it; the server is worth starting.
        _logger.exception("no predictor was loaded ahead of the first request")
