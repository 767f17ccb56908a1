"""Widths made into a plan: priced exactly, checked against the target, given an id by its content."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pruning.anatomy import ModelAnatomy
from pruning.cost import price
from pruning.plan import (
    PlanLayer,
    PlanModel,
    PlanRanking,
    PlanTarget,
    Predicted,
    Provenance,
    PruningPlan,
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
) -> PruningPlan:
    """A plan that keeps `widths` [L] FFN channels. Its id is a hash of everything but `created_at`."""
    layers = tuple(
        PlanLayer(index=x.index, ffn_width=w, num_kv_groups=x.num_kv_groups, num_heads=x.num_heads)
        for w, x in zip(widths, anatomy.layers, strict=True)
    )
    draft = PruningPlan(
        plan_id="",
        method=method,
        created_at=created_at or datetime.now(UTC),
        model=PlanModel(id=model_id, fingerprint=anatomy.fingerprint),
        target=target,
        layers=layers,
        ranking=ranking,
        achieved=price(anatomy, list(widths), compensates=ranking.compensates),
        predicted=predicted,
        provenance=provenance or Provenance(),
    )
    plan_id = content_id(draft.model_dump(mode="json", exclude={"plan_id", "created_at"}))
    return draft.model_copy(update={"plan_id": plan_id})
