"""An architecture made into a plan: priced exactly, given an id by its content, and held against the target."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option
from pruning.errors import PlanError
from pruning.planning.cost import achieved_costs
from pruning.planning.plan import (
    BIAS,
    ROUNDING,
    Achieved,
    Axis,
    PlanLayer,
    PlanRanking,
    PlanTarget,
    Predicted,
    PruningPlan,
    RecoveryStep,
    reconstruction_step,
)
from pruning.planning.plan_parts import PlanModel, Provenance, content_id
from pruning.planning.workload import Workload


def make_plan(
    anatomy: ModelAnatomy,
    architecture: Architecture,
    *,
    model_id: str,
    target: PlanTarget,
    ranking: PlanRanking,
    method: str,
    compensates: bool = False,
    reconstructed_on: str | None = None,
    trained_by: Sequence[RecoveryStep] = (),
    predicted: Predicted | None = None,
    provenance: Provenance | None = None,
    created_at: datetime | None = None,
    achieved: Achieved | None = None,
    weights_sha256: str | None = None,
) -> PruningPlan:
    """A plan that keeps `architecture`. Its id is a hash of the document but for `created_at`.

    `compensates`: layers that are cut get a bias for what they lose, from the means in the ranking file.
    `reconstructed_on`: the calibration set on which the projections out of what is cut are to be solved anew.
    `trained_by`: how what is left is to be trained then.
    `achieved` is what that costs, if that is known already: by default it is priced, without a latency, for the
    workload of the target's budget. `weights_sha256` is of the weight files that were ranked, if that is known.
    """
    if achieved is None:
        workload, gguf = (Workload(), None) if target.budget is None else (target.budget.workload, target.budget.gguf)
        achieved = achieved_costs(anatomy, architecture, workload, compensates=compensates, gguf=gguf)
    recovery = [BIAS] if compensates else []
    if reconstructed_on is not None:
        recovery.append(reconstruction_step(reconstructed_on))
    recovery += trained_by
    if predicted is not None and any(option.bits is not None for _, option in architecture.items):
        predicted = predicted.model_copy(update={"rounding": "rtn"})  # as the evaluator rounds
    layers = tuple(PlanLayer.model_validate(layer) for layer in architecture.document())
    draft = PruningPlan(
        plan_id="",
        method=method,
        created_at=created_at or datetime.now(UTC),
        model=PlanModel(id=model_id, fingerprint=anatomy.fingerprint, weights_sha256=weights_sha256),
        target=target,
        layers=layers,
        ranking=ranking,
        recovery=tuple(recovery),
        achieved=achieved,
        predicted=predicted,
        provenance=provenance or Provenance(),
    )
    return _with_its_id(draft)


def _with_its_id(plan: PruningPlan) -> PruningPlan:
    plan_id = content_id(plan.model_dump(mode="json", exclude={"plan_id", "created_at"}))
    return plan.model_copy(update={"plan_id": plan_id})


def without_bits(plan: PruningPlan, anatomy: ModelAnatomy) -> PruningPlan:
    """What `plan` cuts, with weights in their own dtype: for a program that rounds them itself.

    Its target and what it predicts were of fewer bits, so neither stays, nor does a step of rounding; its provenance
    names `plan`.

    Raises:
        PlanError: no weight is in fewer bits.
        FingerprintMismatchError: `anatomy` is of another model.
    """
    asked = plan.architecture(anatomy)
    if all(option.bits is None for _, option in asked.items):
        raise PlanError(
            "weights can be left as they are where a plan has fewer bits",
            values=f"plan {plan.plan_id} has none",
            remedy="Apply it as it is",
        )
    plain = [(site, Option(x.units, density=x.density)) for site, x in asked.items]
    dense = {site: Option(anatomy.layers[site.layer].units(site.sublayer)) for site, _ in plain}
    architecture = Architecture.of((site, option) for site, option in plain if option != dense[site])
    note = f"the units of plan {plan.plan_id}, whose bits are left to another program"
    if plan.provenance.note:
        note = f"{plan.provenance.note}; {note}"
    return _with_its_id(
        plan.model_copy(
            update={
                "layers": tuple(PlanLayer.model_validate(layer) for layer in architecture.document()),
                "target": plan.target.model_copy(update={"sparsity": None, "budget": None}),
                "achieved": achieved_costs(anatomy, architecture, plan.achieved.workload, compensates=plan.compensates),
                "recovery": tuple(step for step in plan.recovery if step.kind != ROUNDING),
                "predicted": None,
                "provenance": plan.provenance.model_copy(update={"note": note, "units_of": plan.plan_id}),
            }
        )
    )


def exceeded_limits(target: PlanTarget, achieved: Achieved) -> list[str]:
    """What of `target` a model of these costs does not keep to, each with both numbers; empty for a good plan.

    A sparsity of weights that are zeroed is none of these costs: it is held against its limit.
    """
    exceeded = []
    zeroes = target.space is not None and Axis.DENSITY in target.space
    # 1e-9 is the slack of `pruning.planning.scope.parameters_to_keep`.
    if target.sparsity is not None and not zeroes and achieved.removed[target.scope] < target.sparsity - 1e-9:
        exceeded.append(f"sparsity {achieved.removed[target.scope]} of {target.sparsity}")
    for name, allowed in ({} if target.budget is None else target.budget.limits).items():
        reached = getattr(achieved, name)
        if reached is None or reached > allowed:
            exceeded.append(f"{name} {reached} of {allowed}")
    return exceeded
