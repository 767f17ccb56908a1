"""Widths made into a plan: priced exactly, given an id by its content, and held against the target."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Sublayer
from pruning.planning.cost import price
from pruning.planning.plan import (
    Achieved,
    PlanLayer,
    PlanModel,
    PlanRanking,
    PlanTarget,
    Predicted,
    Provenance,
    PruningPlan,
    Workload,
    content_id,
)


def make_plan(
    anatomy: ModelAnatomy,
    widths: Sequence[int],
    *,
    model_id: str,
    target: PlanTarget,
    ranking: PlanRanking,
    method: str,
    predicted: Predicted | None = None,
    provenance: Provenance | None = None,
    created_at: datetime | None = None,
    achieved: Achieved | None = None,
    kv_groups: Sequence[int] | None = None,
    weights_sha256: str | None = None,
) -> PruningPlan:
    """A plan that keeps `widths` [L] FFN channels and `kv_groups` [L], by default all. Its id is a hash of everything
    but `created_at`.

    `achieved` is what the sizes cost, if that is known already: by default it is priced, without a latency, for the
    workload of the target's budget. `weights_sha256` is of the weight files that were ranked, if that is known.
    """
    kv_groups = anatomy.dense_units(Sublayer.ATTENTION) if kv_groups is None else kv_groups
    if achieved is None:
        workload = Workload() if target.budget is None else target.budget.workload
        achieved = price(anatomy, list(widths), workload, kv_groups=kv_groups, compensates=ranking.compensates)
    layers = tuple(
        PlanLayer(index=x.index, ffn_width=width, num_kv_groups=groups, num_heads=groups * x.heads_per_group)
        for width, groups, x in zip(widths, kv_groups, anatomy.layers, strict=True)
    )
    draft = PruningPlan(
        plan_id="",
        method=method,
        created_at=created_at or datetime.now(UTC),
        model=PlanModel(id=model_id, fingerprint=anatomy.fingerprint, weights_sha256=weights_sha256),
        target=target,
        layers=layers,
        ranking=ranking,
        achieved=achieved,
        predicted=predicted,
        provenance=provenance or Provenance(),
    )
    plan_id = content_id(draft.model_dump(mode="json", exclude={"plan_id", "created_at"}))
    return draft.model_copy(update={"plan_id": plan_id})


def exceeded_limits(target: PlanTarget, achieved: Achieved) -> list[str]:
    """What of `target` a model of these costs does not keep to, each with both numbers; empty for a good plan."""
    exceeded = []
    # 1e-9 is the slack of `pruning.planning.target.parameters_to_keep`.
    if target.sparsity is not None and achieved.sparsity[target.scope] < target.sparsity - 1e-9:
        exceeded.append(f"sparsity {achieved.sparsity[target.scope]} of {target.sparsity}")
    budget = target.budget
    if budget is not None:
        for name in ("memory_bytes", "latency_ms", "flops", "disk_bytes"):
            allowed, reached = getattr(budget, name), getattr(achieved, name)
            if allowed is not None and (reached is None or reached > allowed):
                exceeded.append(f"{name} {reached} of {allowed}")
    return exceeded
