"""ShortGPT: the layers that change the hidden states least go, one after the other, until the limits are met.

Men et al., arXiv 2403.03853: block influence is the mean over tokens of 1 - cos(layer's input, its output), and the
layers of least influence are removed at once. In the space of whole layers it is just that, and so the layerwise
paradigm of arXiv 2507.20749, too. Where decisions are finer, the last layer that goes is cut in part: what it need not
give goes back to it. Where only FFN widths may change, a layer keeps its attention, and of its FFN one rounding step.
Layers that a space does not let go as a whole (the first, see `pruning.planning.axis_spaces`) are cut last.

Differs from the published code in the influence: the mean is over tokens, not over the sums of samples, and the last
output is taken before the final norm.
"""

import numpy as np

from pruning.allocators.allocation import Allocation
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.limits import Limits


def allocate_shortgpt(anatomy: ModelAnatomy, statistics: ModelStatistics, limits: Limits) -> Allocation:
    """What meets `limits`: layers that are dense, others at the least that the space allows, and one between.

    Raises:
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`, for ACTIVATIONS.
    """
    statistics.check(anatomy, StatisticsKind.ACTIVATIONS)
    influence, space = statistics.arrays["block_influence"], limits.space
    layers = np.array([decision.sites[0].layer for decision in space.decisions])
    stays = np.zeros(anatomy.num_layers, dtype=np.bool_)
    stays[[layer for layer, units in zip(layers, space.units, strict=True) if units[0] > 0]] = True
    choice, floor = np.array(space.top), limits.table.floor
    for layer in np.lexsort((influence, stays)):
        if (limits.slack(choice) >= 0).all():
            break
        choice[layers == layer] = floor[layers == layer]
    # The later a layer went, the more of it comes back: a half is worth what all of it costs, each unit its share.
    worth = np.zeros(limits.table.exists.shape)
    for row, units, costs, layer in zip(worth, space.units, limits.binding.costs, layers, strict=True):
        row[: len(units)] = max(float(influence[layer]), 1e-9) * float(costs.max()) * units / max(units[-1], 1)
    return Allocation(space.architecture(limits.fit(choice, worth)))
