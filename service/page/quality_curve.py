"""Expected quality over what is removed, by every method that can say what to expect."""

import time
from dataclasses import dataclass

from pruning.allocators.methods import Method
from pruning.errors import LopError, StorageError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from pruning.planning.scope import Scope
from pruning.planning.target import usual_scope
from service.lru_cache import LruCache
from service.page.curves import Line
from service.planner import Planner
from service.schemas import PlanRequest

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_KEPT_SECONDS = 60
_MOST_CURVES = 64


@dataclass(frozen=True, slots=True)
class MethodCurves:
    """A line a method: removed share of `scope`, expected KL and its interval. `silent` methods predict nothing."""

    scope: Scope
    lines: tuple[Line, ...]
    silent: tuple[str, ...]


class CurveDrawer:
    """Asks the planner for every method's plans, as a client would; what it found is good for a minute."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._curves: LruCache[tuple[str, SpaceName, int], MethodCurves] = LruCache(_MOST_CURVES)

    def curves(self, model_id: str, space: SpaceName) -> MethodCurves:
        """Of the model, in the space. Raises NotFoundError for an unknown model, StorageError as the planner."""
        self._planner.model(model_id)
        minute = int(time.monotonic() // _KEPT_SECONDS)
        return self._curves.get((model_id, space, minute), lambda: self._curves_of(model_id, space))

    def _curves_of(self, model_id: str, space: SpaceName) -> MethodCurves:
        scope = usual_scope(space)
        lines, silent = [], []
        for method in Method:
            if space not in method.spaces:
                continue
            points: list[tuple[float, float, float, float]] = []
            for sparsity in SPARSITIES:
                request = PlanRequest(model=model_id, sparsity=sparsity, space=space, scope=scope, method=method)
                try:
                    plan = self._planner.plan(request)
                except StorageError:
                    raise
                except LopError:
                    continue  # the method lacks its data, or does not reach so far
                if (point := point_of(plan, scope)) is None:
                    silent.append(method.value)
                    break
                points.append(point)
            if points:
                lines.append(Line(method.value, tuple(points)))
        return MethodCurves(scope, tuple(lines), tuple(silent))


def point_of(plan: PruningPlan, scope: Scope) -> tuple[float, float, float, float] | None:
    """Removed share of `scope`, expected KL, and its interval; None where nothing is predicted."""
    if plan.predicted is None or scope not in plan.achieved.removed:
        return None
    quality = plan.predicted.quality
    low, high = plan.predicted.interval or (quality, quality)
    return plan.achieved.removed[scope], quality, low, high
