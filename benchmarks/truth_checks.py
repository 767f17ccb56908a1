"""A plan held against what was asked for, by the costs of the model that its config builds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.built_costs import build_on_meta, count_costs
from benchmarks.built_latency import BuiltLatency
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device
from pruning.planning.latency_model import LatencySource
from pruning.planning.plan import Achieved, PruningPlan
from pruning.planning.workload import Budget
from service.schemas import PlanRequest

LIMITS = ("memory_bytes", "latency_ms", "flops", "disk_bytes")
EPSILON = 1e-9
"""Relative error of sums in floating point: of latencies, and of nothing else."""


@dataclass(frozen=True)
class Checked:
    """One request, its plan, and what was found wrong with it.

    Attributes:
        is_measured: its latency comes from a profile's tables.
        asked: "sparsity", "device" or the limits of the budget, joined by +.
        exceeded: what the built model exceeds; empty for a plan that keeps its target.
        differing: what the plan says of its costs that is not so.
        used: how much of the tightest limit is used, for a budget; None otherwise.
    """

    model: str
    method: str
    asked: str
    device: str | None
    is_measured: bool
    exceeded: tuple[str, ...]
    differing: tuple[str, ...]
    used: float | None


def check_plan(
    request: PlanRequest,
    plan: PruningPlan,
    anatomy: ModelAnatomy,
    source: Path,
    folder: Path,
    *,
    devices: Mapping[str, Device] = DEVICES,
) -> Checked:
    """Build the plan's model in `folder`, count its costs, and hold them against the request and against the plan."""
    device = None if request.device is None else devices[request.device]
    built = count_costs(build_on_meta(source, plan, anatomy, folder), plan, anatomy, device)
    said = plan.achieved
    assert said.activation_bytes is not None
    costs = {
        "memory_bytes": built.weight_bytes + built.kv_cache_bytes + said.activation_bytes,
        "latency_ms": None if built.latency is None else built.latency.total_ms - built.latency.short_ms,
        "flops": built.flops,
        "disk_bytes": built.disk_bytes,
    }
    asked: dict[str, float] = {}
    if request.sparsity is None:
        given = Budget() if request.budget is None else request.budget
        asked = {name: getattr(given, name) for name in LIMITS if getattr(given, name) is not None}
        if device is not None:
            asked["memory_bytes"] = min(asked.get("memory_bytes", device.memory_bytes), device.memory_bytes)
    exceeded = [name for name, most in asked.items() if (cost := costs[name]) is None or _exceeds(name, cost, most)]
    if request.sparsity is not None and built.sparsity[request.scope] < request.sparsity - 1e-9:
        exceeded.append("sparsity")
    if any(w % request.tp_size for w in built.widths):
        exceeded.append("tp_size")
    dense = [layer.ffn_width for layer in anatomy.layers]
    if any(w % request.round_to and w != d for w, d in zip(built.widths, dense, strict=True)):
        exceeded.append("round_to")
    differing = [name for name in costs if name != "latency_ms" and costs[name] != getattr(said, name)]
    differing += ["latency_ms"] * _latency_differs(built.latency, said)
    differing += ["parameters"] * (built.parameters != said.parameters)
    differing += ["widths"] * (built.widths != plan.ffn_widths(anatomy))
    differing += ["kv_groups"] * (built.kv_groups != anatomy.kv_groups(plan.architecture(anatomy)))
    differing += ["kv_cache_bytes"] * (built.kv_cache_bytes != said.kv_cache_bytes)
    shares = [(costs[name] or 0) / most for name, most in asked.items()]
    whole = built.parameters == anatomy.total_parameters
    return Checked(
        model=request.model,
        method=plan.method,
        asked="sparsity" if request.sparsity is not None else _asked_for(request),
        device=request.device,
        is_measured=said.latency_source == LatencySource.MEASURED.value,
        exceeded=tuple(exceeded),
        differing=tuple(differing),
        used=max(shares) if shares and not whole else None,
    )


def _exceeds(name: str, cost: float, most: float) -> bool:
    """Bytes and operations are integers, which Python compares exactly; a latency is a sum in floating point."""
    return cost > (most * (1 + EPSILON) if name == "latency_ms" else most)


def _latency_differs(built: BuiltLatency | None, said: Achieved) -> bool:
    """What the plan says is not what was counted, up to the nanoseconds that it rounds by, or not of its source."""
    if built is None or said.latency_ms is None:
        return (built is None) != (said.latency_ms is None)
    above, error = said.latency_ms - built.total_ms, EPSILON * built.total_ms
    return said.latency_source != built.source or not -built.short_ms - error <= above <= built.rounding_ms + error


def _asked_for(request: PlanRequest) -> str:
    budget = request.budget
    names = [name for name in LIMITS if budget is not None and getattr(budget, name) is not None]
    return "+".join(names) or "device"
