"""What an allocator answers, and how real-valued wishes become widths that use limits up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning.allocators.uniform import uniform_widths
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.ranking import Ranking


@dataclass(frozen=True)
class Allocation:
    """Widths, and which channels they are.

    Attributes:
        widths: FFN widths [L].
        ranking: the method's own order of channels; None: the ranking that the model is registered with.
    """

    widths: list[int]
    ranking: Ranking | None = None


def parameter_budget(anatomy: ModelAnatomy, limits: Limits) -> int:
    """FFN parameters for a method that divides parameters: what a sparsity allows, or else what equal retention keeps.

    Raises:
        InfeasibleBudgetError: the narrowest allowed model exceeds a limit.
    """
    limits.check()
    if len(limits.limits) == 1 and limits.limits[0].kind is LimitKind.FFN_PARAMETERS:
        return limits.limits[0].most
    widths = uniform_widths(limits)
    return sum(w * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))


def widths_near(limits: Limits, wished: Sequence[float]) -> list[int]:
    """Allowed widths [L] near the `wished` ones that meet `limits`, and of which none can grow by a step.

    Where rounding leaves something over, the layer furthest below its wish gets the next step, counted in fractions of
    its widest; where the wishes cost too much, the layer furthest above its wish gives one. An infinite wish is the
    widest, and gives only when no other layer can.

    Raises:
        InfeasibleBudgetError: the narrowest allowed model exceeds a limit.
    """
    widest = np.array(limits.steps.widest, dtype=np.float64)
    wishes = np.array(wished, dtype=np.float64)
    start = [math.floor(w) for w in np.clip(wishes, 0, widest)]
    return limits.repair(start, lambda widths: (wishes - widths) / widest)
