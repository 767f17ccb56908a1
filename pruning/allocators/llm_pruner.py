"""LLM-Pruner: first-order Taylor importance, one ratio for the middle layers, the outer ones left alone.

Ma et al., arXiv 2305.11627, as "Investigating Structural Pruning and Recovery Techniques for Compressing MLLMs" (arXiv
2507.20749) sets it for LLaVA-1.5-7B: FFNs from layer 3 up to, not including, layer 19 of 32 (a ratio of 0.3 there, and
in the attention of one layer more, is the 15.3% of the decoder that the study reports). Differs from both: FFN channels
only; the range is scaled to the model's depth; it is widened by a layer on each side where it cannot meet the budget.
"""

import math

from pruning.allocators.allocation import Allocation, widths_near
from pruning.anatomy import ModelAnatomy
from pruning.ranking import Ranking
from pruning.statistics import ModelStatistics, StatisticsKind

MIDDLE_START, MIDDLE_STOP, OF_LAYERS = 3, 19, 32
"""The study's range of FFN layers, half-open, and its model's depth."""


def allocate_llm_pruner(
    anatomy: ModelAnatomy, statistics: ModelStatistics, budget: int, *, round_to: int
) -> Allocation:
    """Equal retention in the middle layers under `budget` FFN parameters, with LLM-Pruner's order of channels.

    Raises:
        InfeasibleTargetError: the budget is below `round_to` channels in every layer.
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`, for GRADIENTS.
    """
    statistics.check(anatomy, StatisticsKind.GRADIENTS)
    middle = pruned_range(anatomy, budget, round_to=round_to)
    parameters = sum(anatomy.layers[index].ffn_parameters for index in middle)
    retention = (budget - (anatomy.ffn_parameters - parameters)) / parameters
    wished = [x.ffn_width * retention if x.index in middle else math.inf for x in anatomy.layers]
    ranking = Ranking.from_scores(anatomy, statistics.per_layer("ffn_taylor"))
    return Allocation(widths_near(anatomy, wished, budget, round_to=round_to), ranking)


def pruned_range(anatomy: ModelAnatomy, budget: int, *, round_to: int) -> range:
    """The study's middle layers, widened until the budget can be met, or until they are all layers."""
    depth = anatomy.num_layers
    start = round(depth * MIDDLE_START / OF_LAYERS)
    stop = max(round(depth * MIDDLE_STOP / OF_LAYERS), start + 1)
    while (start > 0 or stop < depth) and _least_parameters(anatomy, range(start, stop), round_to) > budget:
        start, stop = max(start - 1, 0), min(stop + 1, depth)
    return range(start, stop)


def _least_parameters(anatomy: ModelAnatomy, pruned: range, round_to: int) -> int:
    """FFN parameters if the layers in `pruned` keep `round_to` channels and the others everything."""
    return sum(
        (min(round_to, x.ffn_width) if x.index in pruned else x.ffn_width) * x.ffn_parameters_per_channel
        for x in anatomy.layers
    )
