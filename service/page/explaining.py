"""What the explorer and the comparison show of a plan, beside the plan itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.devices.device import Device
from pruning.devices.latency import latency_model
from pruning.errors import InputError
from pruning.planning import prices
from pruning.planning.axis_spaces import fine_space
from pruning.planning.cost import achieved_costs
from pruning.planning.plan import Achieved, PruningPlan
from pruning.planning.workload import Budget, Workload
from service.page.asking import MIB
from service.page.kept_picture import KeptPicture, kept_picture
from service.root_path import plan_from_outside
from service.schemas import PlanRequest

_COSTS = (
    ("memory_bytes", "Memory", "bytes"),
    ("disk_bytes", "On disk", "bytes"),
    ("flops", "Operations", "flops"),
    ("latency_ms", "Latency", "ms"),
)


@dataclass(frozen=True, slots=True)
class CostRow:
    """One cost of a plan: of the dense model, of the plan, and what is allowed."""

    name: str
    form: str
    dense: float
    reached: float
    limit: float | None

    @property
    def share(self) -> float:
        """Of the dense model's."""
        return self.reached / self.dense if self.dense else 1.0


@dataclass(frozen=True, slots=True)
class ShownPlan:
    """A plan with its picture and its costs beside those of the dense model."""

    plan: PruningPlan
    document: Mapping[str, Any]
    picture: KeptPicture
    costs: tuple[CostRow, ...]


def shown(request: Request, plan: PruningPlan, anatomy: ModelAnatomy, device: Device | None) -> ShownPlan:
    """The plan as pages show it and clients get it; `device` is the target's, if that is known."""
    plan = plan_from_outside(request, plan.without_dense(anatomy))
    dense = _costs(anatomy, Architecture(), plan.achieved.workload, device)
    rows = []
    for name, label, form in _COSTS:
        reached, before = getattr(plan.achieved, name), getattr(dense, name)
        if reached is not None and before is not None:
            rows.append(CostRow(label, form, before, reached, _limit(name, plan.target.budget, device)))
    picture = kept_picture(anatomy, plan.architecture(anatomy))
    return ShownPlan(plan, plan.model_dump(mode="json"), picture, tuple(rows))


def _limit(name: str, budget: Budget | None, device: Device | None) -> float | None:
    """On a cost: what was asked for, and of memory also what the device has; the lower one. None for neither."""
    asked: float | None = None if budget is None else getattr(budget, name)
    if name != "memory_bytes" or device is None:
        return asked
    return device.memory_bytes if asked is None else min(asked, device.memory_bytes)


@dataclass(frozen=True, slots=True)
class Bounds:
    """From the cheapest to the dense model: what the sliders go over."""

    memory_mib: tuple[float, float]
    latency_ms: tuple[float, float] | None


def bounds(anatomy: ModelAnatomy, request: PlanRequest, device: Device | None) -> Bounds | None:
    """For the request's space and workload; None where it has no space."""
    workload = Workload() if request.budget is None else request.budget.workload
    try:
        space = fine_space(anatomy, request.space, round_to=request.round_to, tp_size=request.tp_size)
    except InputError:
        return None
    memory = prices.memory_bytes(anatomy, workload)
    least, most = (memory.cost(x) / MIB for x in (space.architecture(space.bottom), Architecture()))
    latency = None
    if device is not None:
        price = prices.LatencyPrice(anatomy, latency_model(device, anatomy, workload))
        times = [price.latency(x) for x in (space.architecture(space.bottom), Architecture())]
        if times[0] is not None and times[1] is not None:
            latency = (times[0].total_ms, times[1].total_ms)
    return Bounds((least, most), latency)


def _costs(anatomy: ModelAnatomy, architecture: Architecture, workload: Workload, device: Device | None) -> Achieved:
    latency = None if device is None else latency_model(device, anatomy, workload)
    return achieved_costs(anatomy, architecture, workload, latency=latency)
