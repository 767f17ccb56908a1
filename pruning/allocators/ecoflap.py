"""ECoFLaP: layers keep parameters in proportion to their zeroth-order importance.

Sung et al., arXiv 2310.02998, and its code. Each group first keeps what the largest sparsity p_max = p + 0.1 leaves it;
what the budget has left is given out in proportion to scores, over and over, until full groups leave none. Differs from
the paper: a group is a layer's FFN, since that is what is pruned; parameters given out beyond the budget by rounding up
are taken back from the widest groups (the published code means to, and adds them again); the result becomes widths,
where the paper prunes single weights. Channels go in the model's registered order, which is Wanda's, as the paper's
local step is.
"""

import numpy as np

from pruning.allocators.allocation import Allocation, architecture_near, parameter_budget
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.limits import Limits

EXTRA_SPARSITY = 0.1
"""How much sparser than the whole a group may become: p_max - p."""


def allocate_ecoflap(anatomy: ModelAnatomy, statistics: ModelStatistics, limits: Limits) -> Allocation:
    """Widths that meet `limits`.

    Raises:
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`, for ZEROTH_ORDER.
    """
    statistics.check(anatomy, StatisticsKind.ZEROTH_ORDER)
    budget = parameter_budget(anatomy, limits)
    sizes = [layer.ffn_parameters for layer in anatomy.layers]
    kept = kept_parameters(sizes, statistics.arrays["ffn_zeroth_order"], max(0, min(budget, sum(sizes))))
    wished = [k / layer.ffn_parameters_per_channel for k, layer in zip(kept, anatomy.layers, strict=True)]
    return Allocation(architecture_near(limits, wished))


def kept_parameters(
    sizes: list[int], scores: FloatArray, budget: int, *, extra_sparsity: float = EXTRA_SPARSITY
) -> list[int]:
    """Parameters [L] that each group keeps: exactly `budget` together.

    Args:
        sizes: [L] parameters of the groups.
        scores: [L] importance, at least 0. Where no group that has room scores, all score alike.
        budget: between 0 and all parameters.
    """
    size = np.array(sizes, dtype=np.int64)
    max_sparsity = min(1.0, 1.0 - budget / int(size.sum()) + extra_sparsity)
    # Less 1e-9, so that binary fractions do not round a whole number up.
    least = np.maximum(np.ceil(size * (1.0 - max_sparsity) - 1e-9), 0).astype(np.int64)
    if int(least.sum()) > budget:  # rounding up is too much where groups are tiny
        least = np.floor(size * (1.0 - max_sparsity)).astype(np.int64)
    kept = least.copy()
    while (remaining := budget - int(kept.sum())) > 0:
        shares = np.where(kept < size, scores, 0.0)
        if shares.sum() <= 0:
            shares = np.where(kept < size, 1.0, 0.0)
        kept = np.minimum(kept + np.ceil(shares / shares.sum() * remaining).astype(np.int64), size)
    for group in np.argsort(-kept, kind="stable"):
        surplus = int(kept.sum()) - budget
        kept[group] -= min(max(surplus, 0), int(kept[group] - least[group]))
    return [int(k) for k in kept]
