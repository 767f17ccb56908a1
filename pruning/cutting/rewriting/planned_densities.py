"""The densities of a plan's sub-layers, for each weight of the decoder."""

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.packed_weights import packed_weights
from pruning.cutting.rewriting.blocks import language_blocks
from pruning.errors import InputError, PlanError
from pruning.planning.plan import PruningPlan
from pruning.planning.zeroed import zeroed_weights


def planned_densities(plan: PruningPlan, anatomy: ModelAnatomy) -> dict[str, float]:
    """Of every projection of the decoder, by its weight's name, the share of weights that stays.

    Raises:
        FingerprintMismatchError: `anatomy` is of another model.
        PlanError: the plan changes anything but densities, or none of them, or counts on a recovery.
    """
    architecture = plan.architecture(anatomy)
    others = [(site, option) for site, option in architecture.items if option.density is None]
    try:
        zeros = zeroed_weights(anatomy, architecture)
    except InputError as error:
        raise PlanError(f"this plan's densities cannot be written: {error}") from error
    if others or not zeros:
        site, option = others[0] if others else (None, None)
        raise PlanError(
            "sparsifying takes plans that say densities, and nothing else",
            values="no density" if site is None else f"layer {site.layer}, {site.sublayer}: {option}",
            remedy="Units and bits are for `lop apply`",
        )
    if plan.recovery:
        raise PlanError(
            "sparsifying does none of a plan's recovery steps",
            values=", ".join(step.kind for step in plan.recovery),
            remedy="Use a plan without them; --method sparsegpt lets weights that stay make up for the others",
        )
    found = {x.name: 1.0 for block in language_blocks(anatomy) for x in block.projections}
    for site, option in architecture.items:
        assert option.density is not None
        found |= {weight.name: option.density for weight in packed_weights(anatomy)[site]}
    return found
