"""ShortGPT: the layers that change the hidden states least lose their FFNs first.

Men et al., arXiv 2403.03853: block influence is the mean over tokens of 1 - cos(layer's input, its output), and the
layers of least influence are removed at once. Differs from the paper: a layer loses its FFN only, down to one rounding
step, and keeps its attention; the layer at which the budget is reached is cut in part. Differs from the published code
in the influence: the mean is over tokens, not over the sums of samples, and the last output is taken before the final
norm.
"""

import math

import numpy as np

from pruning.allocators.allocation import Allocation, architecture_near, parameter_budget
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.limits import Limits


def allocate_shortgpt(anatomy: ModelAnatomy, statistics: ModelStatistics, limits: Limits) -> Allocation:
    """Widths that meet `limits`: dense, or the narrowest, and one layer between.

    Raises:
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`, for ACTIVATIONS.
    """
    statistics.check(anatomy, StatisticsKind.ACTIVATIONS)
    to_remove = anatomy.ffn_parameters - parameter_budget(anatomy, limits)
    wished = [math.inf] * anatomy.num_layers
    for index in np.argsort(statistics.arrays["block_influence"], kind="stable"):
        if to_remove <= 0:
            break
        layer = anatomy.layers[index]
        removable = layer.ffn_width - int(limits.space.units[index][0])
        removed = min(to_remove / layer.ffn_parameters_per_channel, removable)
        wished[index] = layer.ffn_width - removed
        to_remove -= math.ceil(removed * layer.ffn_parameters_per_channel)
    return Allocation(architecture_near(limits, wished))
