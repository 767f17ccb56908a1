"""A prefix that a proxy puts before every path of the service, and takes away again before it hands a request on.

The service's own paths stay what they are; only what it tells a client about paths has the prefix: the documentation,
Location headers, links to rankings and to the next page.
"""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from pruning.planning.plan import PruningPlan


class RootPath:
    """ASGI middleware: tells the application its prefix. Requests may come with the prefix or without it."""

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.root_path and scope["type"] in ("http", "websocket"):
            scope = {**scope, "root_path": self.root_path}
        await self.app(scope, receive, send)


def seen_from_outside(request: Request, path: str) -> str:
    """`path` of the service as a client asks for it."""
    return f"{request.scope.get('root_path', '')}{path}"


def plan_from_outside(request: Request, plan: PruningPlan) -> PruningPlan:
    """`plan` with the address of its ranking as a client asks for it."""
    if plan.ranking.url is None:
        return plan
    ranking = plan.ranking.model_copy(update={"url": seen_from_outside(request, plan.ranking.url)})
    return plan.model_copy(update={"ranking": ranking})


def own_path(scope: Scope) -> str:
    """The request's path without the prefix, whether the proxy has taken it away or not."""
    path, root_path = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root_path) if path.startswith(f"{root_path}/") else path
