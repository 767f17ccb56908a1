"""FLAP: channels that fluctuate least go first, over all layers at once, and a bias stands in for them.

An et al., arXiv 2312.11983, in its default form (metric WIFV, structure AL-AM). Channel j of a layer's down projection
scores the variance of its input times ||W_down[:, j]||_2^2. Scores are standardised within each layer (z-scores),
sorted over all layers, and the lowest are cut until the budget is met, every channel weighed by its parameters. Each
cut layer gets the bias W_down[:, removed] @ mean[removed] (`pruning.forward.compensation`).

Differs from the paper: FFN channels only, no attention heads; biases count as parameters and are paid for from the
budget; widths are rounded, and no layer goes below one rounding step.
"""

import numpy as np

from pruning.allocators.allocation import Allocation, architecture_near, parameter_budget
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.added_biases import bias_parameters
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.ranking import Ranking


def allocate_flap(anatomy: ModelAnatomy, statistics: ModelStatistics, limits: Limits) -> Allocation:
    """Widths that meet `limits`, which count added biases, and a ranking that compensates.

    Raises:
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`, for ACTIVATIONS.
    """
    statistics.check(anatomy, StatisticsKind.ACTIVATIONS)
    scores = [
        variance * norm**2
        for variance, norm in zip(statistics.per_layer("ffn_variance"), statistics.per_layer("down_norm"), strict=True)
    ]
    budget = parameter_budget(anatomy, limits)
    if limits.limits[0].kind is LimitKind.FFN_PARAMETERS:  # what a sparsity allows is for the biases too
        budget -= sum(bias_parameters(anatomy))
    kept = channels_above_global_cut(anatomy, [z_scores(x) for x in scores], budget)
    return Allocation(
        architecture_near(limits, kept), Ranking.from_scores(anatomy, scores, means=statistics.per_layer("ffn_mean"))
    )


def z_scores(values: FloatArray) -> FloatArray:
    """(values - mean) / unbiased standard deviation; zeros where nothing differs."""
    centred = values - values.mean()
    deviation = float(np.sqrt((centred**2).sum() / max(len(values) - 1, 1)))
    return centred / deviation if deviation > 0 else np.zeros_like(centred)


def channels_above_global_cut(anatomy: ModelAnatomy, scores: list[FloatArray], budget: int) -> list[int]:
    """Channels [L] that each layer keeps if the best of all layers together are kept while `budget` parameters last."""
    layer = np.concatenate([np.full(len(x), index) for index, x in enumerate(scores)])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    parameters = np.array([x.ffn_parameters_per_channel for x in anatomy.layers], dtype=np.int64)
    fits = np.cumsum(parameters[layer[order]]) <= budget
    return [int(n) for n in np.bincount(layer[order[fits]], minlength=anatomy.num_layers)]
