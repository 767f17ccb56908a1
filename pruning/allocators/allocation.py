"""What an allocator answers, and how real-valued wishes become widths that use a budget up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pruning.anatomy import ModelAnatomy
from pruning.ranking import Ranking
from pruning.repair import repair_widths


@dataclass(frozen=True)
class Allocation:
    """Widths, and which channels they are.

    Attributes:
        widths: FFN widths [L].
        ranking: the method's own order of channels; None: the ranking that the model is registered with.
    """

    widths: list[int]
    ranking: Ranking | None = None


def widths_near(
    anatomy: ModelAnatomy,
    wished: Sequence[float],
    budget: int,
    *,
    round_to: int,
    cut_parameters: Sequence[int] | None = None,
) -> list[int]:
    """Widths [L] near the `wished` ones that cost at most `budget` parameters and leave less than one step of it over.

    Where rounding leaves some of the budget over, the layer furthest below its wish gets the next step, counted in
    fractions of its dense width; where the least widths cost too much, the layer furthest above its wish gives one. An
    infinite wish is dense, and gives only when no other layer can. `cut_parameters` [L] as in `repair_widths`.

    Raises:
        InfeasibleTargetError: the budget is below `round_to` channels in every layer.
    """
    dense = [layer.ffn_width for layer in anatomy.layers]
    start = [d if w >= d else max(0, math.floor(w)) for w, d in zip(wished, dense, strict=True)]
    return repair_widths(
        anatomy,
        start,
        budget,
        round_to=round_to,
        marginal=lambda layer, width: (wished[layer] - width) / dense[layer],
        cut_parameters=cut_parameters,
    )
