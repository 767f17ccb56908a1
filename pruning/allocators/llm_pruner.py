"""LLM-Pruner: first-order Taylor importance, one ratio for the middle layers, the outer ones left alone.

Ma et al., arXiv 2305.11627, as "Investigating Structural Pruning and Recovery Techniques for Compressing MLLMs" (arXiv
2507.20749) sets it for LLaVA-1.5-7B: FFNs from layer 3 up to, not including, layer 19 of 32 (a ratio of 0.3 there, and
in the attention of one layer more, is the 15.3% of the decoder that the study reports). Differs from both: FFN channels
only; the range is scaled to the model's depth; and where its layers would keep less than `LEAST_RETENTION`, it is
widened, by later layers first and by earlier ones only when those are all in.

Both papers fix the range, so neither says how to widen it for targets beyond it. Later layers go first because both
leave the first ones alone: LLM-Pruner's own range for LLaMA-7B, 4 to 30 of 32, is the study's widened that way. It
matters: on 48 calibration conversations of the reference model (12 layers), KL at 40%, 50% and 60% sparsity is 0.23,
0.40 and 0.80, where a layer more on each side gives 0.23, 6.5 and 6.8.
"""

import math
from collections.abc import Sequence

from pruning.allocators.allocation import Allocation, architecture_near, parameter_budget
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.limits import Limits
from pruning.planning.ranking import Ranking

MIDDLE_START, MIDDLE_STOP, OF_LAYERS = 3, 19, 32
"""The study's range of FFN layers, half-open, and its model's depth."""

LEAST_RETENTION = 0.2
"""The range is widened rather than that its layers keep less. Half of LLaMA-7B out of LLM-Pruner's 26 layers would
leave them 1 - 0.5 x 32 / 26 = 0.38, but that is a worse bound than 0.2 on the data above: it draws in the first layer
at 60% already, and KL is 0.21, 0.46 and 3.2."""


def allocate_llm_pruner(anatomy: ModelAnatomy, statistics: ModelStatistics, limits: Limits) -> Allocation:
    """Equal retention in the middle layers that meets `limits`, with LLM-Pruner's order of channels.

    Raises:
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`, for GRADIENTS.
    """
    statistics.check(anatomy, StatisticsKind.GRADIENTS)
    budget = parameter_budget(anatomy, limits)
    middle = pruned_range(anatomy, budget, limits.space.units_of(limits.space.bottom))
    parameters = sum(anatomy.layers[index].ffn_parameters for index in middle)
    retention = (budget - (anatomy.ffn_parameters - parameters)) / parameters
    wished = [x.ffn_width * retention if x.index in middle else math.inf for x in anatomy.layers]
    ranking = Ranking.from_scores(anatomy, statistics.per_layer("ffn_taylor"))
    return Allocation(architecture_near(limits, wished), ranking)


def pruned_range(anatomy: ModelAnatomy, budget: int, narrowest: Sequence[int]) -> range:
    """The study's middle layers, widened until they can keep `LEAST_RETENTION` and `narrowest` [L], or are all."""
    depth = anatomy.num_layers
    start = round(depth * MIDDLE_START / OF_LAYERS)
    stop = max(round(depth * MIDDLE_STOP / OF_LAYERS), start + 1)
    while (start > 0 or stop < depth) and _least_parameters(anatomy, range(start, stop), narrowest) > budget:
        start, stop = (start, stop + 1) if stop < depth else (start - 1, stop)
    return range(start, stop)


def _least_parameters(anatomy: ModelAnatomy, pruned: range, narrowest: Sequence[int]) -> int:
    """FFN parameters if the layers in `pruned` keep the least that they may and the others everything."""
    least = [max(n, int(LEAST_RETENTION * x.ffn_width)) for n, x in zip(narrowest, anatomy.layers, strict=True)]
    return sum(
        (least[x.index] if x.index in pruned else x.ffn_width) * x.ffn_parameters_per_channel for x in anatomy.layers
    )
