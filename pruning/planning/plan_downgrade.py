"""A plan as a document of schema 1, for clients that know no other: exactly when schema 1 can say what is meant."""

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.errors import PlanSchemaError
from pruning.planning.plan import BIAS, Kept, PruningPlan
from pruning.planning.plan_v1 import AchievedV1, LayerV1, PlanV1, PredictedV1, ProvenanceV1, RankingV1, TargetV1


def downgrade(plan: PruningPlan, anatomy: ModelAnatomy) -> PlanV1:
    """`plan` in schema 1, under the same id; a plan that was read from schema 1 is again what it was, but
    for bits of a layer of which nothing stays.

    `anatomy` is of the model that the plan was made for: schema 1 lists what is dense, too. What schema 1 has no place
    for and the plan can be used without is left out: the axes of `target.space`, `achieved.gguf_bytes`, and what
    `predicted.of`, `provenance.filled_up` and `provenance.units_of` say, which `provenance.note` says in words.

    Raises:
        PlanSchemaError: the plan asks for bits of one half of a layer only, densities, or a recovery other than biases.
        FingerprintMismatchError, PlanError: `anatomy` is of another model, or the plan names a layer that it lacks.
    """
    if beyond := _beyond_schema_1(plan):
        raise PlanSchemaError(
            "plan schema 1 holds FFN widths, KV groups, skipped sub-layers, bits of whole layers and biases only",
            values=f"plan {plan.plan_id}: {beyond}",
            remedy="Ask for schema 2",
        )
    options = plan.architecture(anatomy).options
    layers = []
    for dense in anatomy.layers:
        ffn, attention = (
            options.get(Site(dense.index, half), Option(dense.units(half)))
            for half in (Sublayer.FFN, Sublayer.ATTENTION)
        )
        layer = {
            "index": dense.index,
            "ffn_width": ffn.units,
            "num_kv_groups": attention.units,
            "num_heads": attention.units * dense.heads_per_group,
            "weight_bits": ffn.bits or attention.bits,
            "skip": [name for name, half in (("ffn", ffn), ("attention", attention)) if half.units == 0],
        }
        layers.append(LayerV1.model_validate(layer))
    achieved, predicted = plan.achieved.model_dump(), plan.predicted
    del achieved["zeroed"]
    achieved.pop("gguf_bytes", None)
    return PlanV1(
        plan_id=plan.plan_id,
        method=plan.method,
        created_at=plan.created_at,
        model=plan.model,
        target=TargetV1(**plan.target.model_dump(exclude={"space", "recovery"})),
        layers=tuple(layers),
        ranking=RankingV1(sha256=plan.ranking.sha256, url=plan.ranking.url, compensates=plan.compensates),
        achieved=AchievedV1(sparsity=achieved.pop("removed"), **achieved),
        predicted=None if predicted is None else PredictedV1(**predicted.model_dump(exclude={"of"})),
        provenance=ProvenanceV1(**plan.provenance.model_dump(exclude={"filled_up", "units_of"})),
    )


def _beyond_schema_1(plan: PruningPlan) -> str:
    """What `plan` says first that schema 1 cannot; empty if there is nothing."""
    for layer in plan.layers:
        halves = [kept or Kept(units=1) for kept in (layer.ffn, layer.attention)]
        if len({kept.bits for kept in halves if kept.units}) > 1 or any(kept.density is not None for kept in halves):
            return f"layers.{layer.index}: {layer.model_dump(exclude={'index'})}"
    if any(step != BIAS for step in plan.recovery) or len(plan.recovery) > 1:
        return f"recovery: {', '.join(step.kind for step in plan.recovery)}"
    if plan.target.recovery is not None:
        return "target.recovery"
    if plan.target.budget is not None and plan.target.budget.gguf_bytes is not None:
        return "target.budget.gguf_bytes"
    return "achieved.zeroed" if plan.achieved.zeroed else ""
