"""Whether the process lives, and whether it can serve."""

from fastapi import APIRouter

from service.dependencies import RepositoryDep
from service.openapi import problems
from service.schemas import Liveness, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Liveness:
    """Answers without touching anything else: restart the process if this fails."""
    return Liveness()


@router.get("/readyz", summary="Can requests be served?", responses=problems(503))
def readyz(repository: RepositoryDep) -> Readiness:
    """Asks the database: send no requests here while this fails."""
    repository.check()
    return Readiness()
