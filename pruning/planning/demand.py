"""What a request asks of a plan, before anything is known about the method that answers it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.budget import limits_for_budget
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits
from pruning.planning.scope import Scope
from pruning.planning.space import Space
from pruning.planning.target import limits_for_sparsity
from pruning.planning.workload import Budget


@dataclass(frozen=True)
class Demand:
    """A sparsity of a scope, or a budget; exactly one of the two is given.

    Attributes:
        anatomy: of the dense model.
        space: what a plan may choose.
        latency: prices the budget's workload, if a device is named.
    """

    anatomy: ModelAnatomy
    space: Space
    sparsity: float | None = None
    scope: Scope = Scope.FFN
    budget: Budget | None = None
    latency: LatencyModel | None = None

    def limits_for(self, *, compensates: bool = False, at_least: Sequence[int] | None = None) -> Limits:
        """What a method has to meet.

        Args:
            compensates: count the biases that are added to layers that are cut.
            at_least: units [N] that the method cannot go below.

        Raises:
            InfeasibleTargetError: the method's narrowest model is too large, with the nearest value that it can reach.
            InputError: the budget limits nothing, or latency on no device.
        """
        space = self.space if at_least is None else self.space.not_below(at_least)
        if self.budget is not None:
            return limits_for_budget(self.anatomy, space, self.budget, latency=self.latency, compensates=compensates)
        assert self.sparsity is not None
        return limits_for_sparsity(self.anatomy, space, self.sparsity, self.scope, compensates=compensates)
