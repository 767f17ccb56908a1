"""What is trained are plain numbers: a rule that can be held against a plan before anything is loaded."""

from typing import Final

from pruning.anatomy.architecture import Sublayer
from pruning.errors import PlanError
from pruning.planning.plan import PruningPlan

PLAIN_WEIGHTS: Final = "weights that are trained must be plain numbers"


def check_plain(plan: PruningPlan) -> None:
    """Raises PlanError for a plan that stores weights in fewer bits: what it makes cannot be trained."""
    for layer in plan.layers:
        for sublayer, kept in ((Sublayer.FFN, layer.ffn), (Sublayer.ATTENTION, layer.attention)):
            if kept is not None and kept.bits is not None:
                raise PlanError(
                    PLAIN_WEIGHTS,
                    values=f"plan {plan.plan_id}: layer {layer.index}, {sublayer}: {kept.bits} bits",
                    remedy="Recover what a plan of units alone makes, then `lop quantise` the recovered checkpoint",
                )
