"""Whether the process lives, and whether it can serve."""

from fastapi import APIRouter, Request, Response

from pruning.errors import LopError
from service.dependencies import ResourcesDep
from service.openapi import problems
from service.problems import headers_of, plain_problem, problem_of, problem_response
from service.schemas import Liveness, Problem, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Liveness:
    """Answers without touching anything else: restart the process if this fails."""
    return Liveness()


@router.get("/readyz", summary="Can requests be served?", response_model=Readiness, responses=problems(503))
def readyz(resources: ResourcesDep, request: Request) -> Readiness | Response:
    """Asks the database: send no requests here while this fails; `not_ready` says what does not work, and why.

    What does not work while what is stored is still answered is told in `degraded` of an answer of 200: the database
    cannot be written to (a full disk), which refuses new plans and jobs; the data store cannot be used, which refuses
    data sets. Both are tried at most once in five seconds.
    """
    if resources.is_stopping():
        problem = plain_problem(503, request.scope["path"], rule="the server is not stopping", remedy="Ask another one")
        return problem_response(_naming(problem, "server", "it was told to stop"), {"Retry-After": "5"})
    try:
        resources.repository.check()
    except LopError as error:
        problem = problem_of(error, request.scope["path"])
        return problem_response(_naming(problem, "database", str(error)), headers_of(error))
    found = {"database": resources.database_writes.complaint(), "data store": resources.data_store_works.complaint()}
    return Readiness(degraded={what: why for what, why in found.items() if why is not None} or None)


def _naming(problem: Problem, what: str, why: str) -> Problem:
    return problem.model_copy(update={"not_ready": {what: why}})
