"""What an allocator answers, and how real-valued wishes become widths that use limits up."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning.allocators.uniform import cumulative_worth, uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.ranking import Ranking

_WHOLE = 1e9
"""What a unit is worth of a layer that must stay whole: it gives only when no other layer can."""


@dataclass(frozen=True)
class Allocation:
    """What is kept, and which channels they are.

    Attributes:
        architecture: what every layer keeps.
        ranking: the method's own order of channels; None: the ranking that the model is registered with.
    """

    architecture: Architecture
    ranking: Ranking | None = None


def parameter_budget(anatomy: ModelAnatomy, limits: Limits) -> int:
    """FFN parameters for methods that divide parameters: what a sparsity allows, or else what equal retention keeps."""
    if len(limits.limits) == 1 and limits.limits[0].kind is LimitKind.FFN_PARAMETERS:
        return limits.limits[0].most
    return ffn_parameters(anatomy).cost(limits.space.architecture(uniform_choice(limits)))


def architecture_near(limits: Limits, wished: Sequence[float]) -> Architecture:
    """FFN widths near the `wished` ones [L] that meet `limits`, and of which none can grow by a step.

    Where rounding leaves something over, the layer furthest below its wish gets the next step, counted in fractions of
    its widest; where the wishes cost too much, the layer furthest above its wish gives one. An infinite wish is the
    widest, and gives only when no other layer can.
    """
    space = limits.space
    widest = np.array([row[-1] for row in space.units], dtype=np.float64)
    wishes = np.array(wished, dtype=np.float64)
    start = space.at_most(np.floor(np.clip(wishes, 0, widest)))
    rows = zip(space.units, wishes, widest, strict=True)
    worth = cumulative_worth(space, [np.minimum((wish - units) / max(most, 1), _WHOLE) for units, wish, most in rows])
    return space.architecture(limits.fit(start, worth))
