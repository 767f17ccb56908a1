"""LOP service: per-layer pruning plans for multimodal LLMs, searched once and predicted in milliseconds.

    import lop

    plan = lop.Client("http://127.0.0.1:8000").plan(model="reference", sparsity=0.4)
    lop.apply_plan(model, plan)                  # a transformers model, in place
    model = lop.load_pruned("pruned-checkpoint")

Importing this package is cheap: torch, FastAPI and the database are imported by what needs them, when it is used. `pip
install lop-service` is the client alone; what else is needed is named with its command when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pruning.missing_packages import needing

if TYPE_CHECKING:
    from lop.applying import apply_plan as apply_plan
    from lop.async_client import AsyncClient as AsyncClient
    from lop.client import Client as Client
    from pruning.checkpoints.loading import load_pruned as load_pruned
    from pruning.checkpoints.registering import register_transformers as register_transformers
    from pruning.cutting.prune_checkpoint import save_pruned as save_pruned
    from pruning.errors import LopError as LopError
    from pruning.errors import LopServerError as LopServerError
    from pruning.planning.plan import PruningPlan as PruningPlan

_HOMES = {
    "AsyncClient": "lop.async_client",
    "Client": "lop.client",
    "LopError": "pruning.errors",
    "PruningPlan": "pruning.planning.plan",
    "LopServerError": "pruning.errors",
    "apply_plan": "lop.applying",
    "load_pruned": "pruning.checkpoints.loading",
    "register_transformers": "pruning.checkpoints.registering",
    "save_pruned": "pruning.cutting.prune_checkpoint",
}

__all__ = [
    "AsyncClient",
    "Client",
    "LopError",
    "LopServerError",
    "PruningPlan",
    "apply_plan",
    "load_pruned",
    "register_transformers",
    "save_pruned",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lop' has no attribute {name!r}")
    with needing("apply"):
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
