"""What a request asks of a plan, before anything is known about the method that answers it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.budget import limits_for_budget
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits, WidthSteps
from pruning.planning.target import Scope, limits_for_sparsity
from pruning.planning.workload import Budget


@dataclass(frozen=True)
class Demand:
    """A sparsity of a scope, or a budget; exactly one of the two is given.

    Attributes:
        anatomy: of the dense model.
        steps: the widths that a plan may have.
        latency: prices the budget's workload, if a device is named.
    """

    anatomy: ModelAnatomy
    steps: WidthSteps
    sparsity: float | None = None
    scope: Scope = Scope.FFN
    budget: Budget | None = None
    latency: LatencyModel | None = None

    @cached_property
    def limits(self) -> Limits:
        """What plans that add no biases have to meet; raises as `limits_for`."""
        return self.limits_for()

    def limits_for(self, *, compensates: bool = False, at_least: Sequence[int] | None = None) -> Limits:
        """What a method has to meet.

        Args:
            compensates: count the biases that are added to layers that are cut.
            at_least: widths [L] that the method cannot go below.

        Raises:
            InfeasibleTargetError: the method's narrowest model is too large, with the nearest value that it can reach.
            InputError: the budget limits nothing, or latency on no device.
        """
        steps = self.steps if at_least is None else self.steps.not_below(at_least)
        if self.budget is not None:
            return limits_for_budget(self.anatomy, steps, self.budget, latency=self.latency, compensates=compensates)
        assert self.sparsity is not None
        return limits_for_sparsity(self.anatomy, steps, self.sparsity, self.scope, compensates=compensates)
