"""What every method of `benchmarks.axes` is asked for: shares of the decoder to remove, or of its time to keep."""

from dataclasses import dataclass
from enum import StrEnum

from mcts.targets import DEFAULT_LATENCY_SHARES
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InfeasibleBudgetError, InfeasibleTargetError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits
from pruning.planning.prices import LatencyPrice
from pruning.planning.scope import Scope
from pruning.planning.space import Space
from pruning.planning.target import limits_for_sparsity


class Kind(StrEnum):
    """SPARSITY: the least share of the decoder's parameters that goes. LATENCY: the largest share of the dense model's
    time on the profiled machine that a request may take."""

    SPARSITY = "sparsity"
    LATENCY = "latency"


@dataclass(frozen=True)
class Target:
    """`searched`: the predictor has learnt from a search of it."""

    kind: Kind
    value: float
    searched: bool = True

    @property
    def name(self) -> str:
        """As rows and summaries have it."""
        return f"{self.kind} {self.value:g}"


JOINT = SpaceName.ALL
SINGLES = tuple(name for name in SPACES_OF_UNITS if name is not JOINT)
SPARSITIES = tuple(Target(Kind.SPARSITY, value) for value in (0.15, 0.3, 0.45, 0.6))
BETWEEN = tuple(Target(Kind.SPARSITY, value, searched=False) for value in (0.225, 0.375, 0.525))
LATENCIES = tuple(Target(Kind.LATENCY, value) for value in DEFAULT_LATENCY_SHARES)
BETWEEN_LATENCIES = tuple(Target(Kind.LATENCY, value, searched=False) for value in (0.725, 0.575))


@dataclass(frozen=True)
class TargetLimits:
    """Targets of one model as limits over spaces; `latency` prices a request on the machine, for targets of time."""

    anatomy: ModelAnatomy
    latency: LatencyModel | None = None

    def of(self, space: Space, target: Target) -> Limits | None:
        """None where no choice of the space meets the target."""
        try:
            if target.kind is Kind.SPARSITY:
                return limits_for_sparsity(self.anatomy, space, target.value, Scope.DECODER)
            price = self._price
            return Limits(space, (price.limit(space, int(target.value * price.total)),))
        except (InfeasibleTargetError, InfeasibleBudgetError):
            return None

    @property
    def _price(self) -> LatencyPrice:
        if self.latency is None:
            raise ValueError("a target of time needs what prices it")
        return LatencyPrice(self.anatomy, self.latency)
