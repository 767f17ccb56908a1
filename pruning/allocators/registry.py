"""The allocators that decide from measured statistics, by the names that users give them."""

from dataclasses import dataclass
from typing import Protocol

from pruning.allocators.allocation import Allocation
from pruning.allocators.ecoflap import allocate_ecoflap
from pruning.allocators.flap import allocate_flap
from pruning.allocators.llm_pruner import allocate_llm_pruner
from pruning.allocators.methods import Method
from pruning.allocators.owl import allocate_owl
from pruning.allocators.shortgpt import allocate_shortgpt
from pruning.allocators.wanda_sp import allocate_wanda_sp
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.limits import Limits


class Allocate(Protocol):
    """Statistics and limits in, widths out: they meet all limits, and no layer could grow by one more step.

    Raises:
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`.
    """

    def __call__(self, anatomy: ModelAnatomy, statistics: ModelStatistics, limits: Limits) -> Allocation: ...


@dataclass(frozen=True)
class StatisticalAllocator:
    """A method that needs no search: one kind of statistics, measured once, serves every target.

    Attributes:
        method: its declaration.
        kind: the statistics that it decides from.
        allocate: what computes it.
    """

    method: Method
    kind: StatisticsKind
    allocate: Allocate

    @property
    def compensates(self) -> bool:
        return self.method.compensates


_ALLOCATE: dict[Method, Allocate] = {
    Method.WANDA_SP: allocate_wanda_sp,
    Method.FLAP: allocate_flap,
    Method.LLM_PRUNER: allocate_llm_pruner,
    Method.OWL: allocate_owl,
    Method.ECOFLAP: allocate_ecoflap,
    Method.SHORTGPT: allocate_shortgpt,
}

STATISTICAL_ALLOCATORS: dict[str, StatisticalAllocator] = {
    method.value: StatisticalAllocator(method, method.statistics, _ALLOCATE[method])
    for method in Method
    if method.statistics is not None
}
"""By name."""
