"""The allocators that decide from measured statistics, by the names that users give them."""

from dataclasses import dataclass
from typing import Protocol

from pruning.allocators.allocation import Allocation
from pruning.allocators.ecoflap import allocate_ecoflap
from pruning.allocators.flap import allocate_flap
from pruning.allocators.llm_pruner import allocate_llm_pruner
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
        name: the method, in requests and plans.
        kind: the statistics that it decides from.
        allocate: the method.
        compensates: it adds biases to the layers that it cuts, which the limits that it gets must count.
    """

    name: str
    kind: StatisticsKind
    allocate: Allocate
    compensates: bool = False


_ALL = (
    StatisticalAllocator("wanda-sp", StatisticsKind.ACTIVATIONS, allocate_wanda_sp),
    StatisticalAllocator("flap", StatisticsKind.ACTIVATIONS, allocate_flap, compensates=True),
    StatisticalAllocator("llm-pruner", StatisticsKind.GRADIENTS, allocate_llm_pruner),
    StatisticalAllocator("owl", StatisticsKind.ACTIVATIONS, allocate_owl),
    StatisticalAllocator("ecoflap", StatisticsKind.ZEROTH_ORDER, allocate_ecoflap),
    StatisticalAllocator("shortgpt", StatisticsKind.ACTIVATIONS, allocate_shortgpt),
)

STATISTICAL_ALLOCATORS: dict[str, StatisticalAllocator] = {allocator.name: allocator for allocator in _ALL}
"""By name."""
