"""How much each unit matters: the size of what it adds to the residual stream on calibration data.

A channel scores ||W[:, j]||_2 * sqrt(mean over tokens of x_j^2), with x the input of the FFN's down projection and W
its weight: the column form of Wanda's |W| * ||x|| (Sun et al., arXiv 2306.11695), which structured ports (Wanda-sp) sum
over a column. A KV group scores the mean over tokens of the square of what all its query heads add, relative to the
stream there (`pruning.measuring.group_contributions`, which says what that does for massive activations).

Measured, KL on validation conversations when so many groups of every layer go. Reference, four groups a layer: 24
calibration and 48 validation conversations; SmolLM2-135M, three groups: 10 and 10. The choice was made on calibration,
where the score in use is best at a half (.604) and at two thirds (3.50, as the one that is not relative); where one
group goes, taking them away one by one is best there (.072 and .674), and not on SmolLM2's validation.

                                            reference               SmolLM2-135M
    KV groups removed                       1/4    1/2    3/4       1/3    2/3
    relative to the stream (used)           .105   .592   3.00      1.29   3.82
    not relative: mean of |o_g|^2           .100   2.14   4.02      1.39   3.98
    its greedy elimination, with products   .100   2.14   3.36      1.39   3.91
    sums over columns, as channels score    .102   2.07   2.95      1.87   7.60
    weights alone (`weight_importance`)     .194   1.04   4.22      4.05   11.6
    KL when one group alone goes            .047   .754   3.87      1.38   4.79
    the same, one after the other           .047   .892   3.93      1.38   4.76
    at random (mean of three)               .819   1.90   4.11      2.26   10.6

Those by KL take an evaluation a group and more, all others one pass or none.
"""

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.ranking import Ranking


def channel_scores(statistics: ModelStatistics) -> list[FloatArray]:
    """Scores [L][W] of every FFN channel, from statistics of kind ACTIVATIONS: what a registered model is ranked by."""
    return _column_scores(statistics, "down_norm", "ffn_second_moment")


def group_scores(statistics: ModelStatistics, anatomy: ModelAnatomy) -> list[FloatArray] | None:
    """Scores [L][G] of every KV group, from statistics of kind ACTIVATIONS; None if they say nothing of attention.

    Those of a version that knew no contributions of groups give the sums over their columns, scored as channels are.
    """
    if statistics.has_groups:
        return statistics.per_layer("group_contribution")
    if not statistics.has_attention:
        return None
    columns = _column_scores(statistics, "out_norm", "attention_second_moment")
    # Query heads stand in the order of their groups.
    return [
        scores.reshape(layer.num_kv_groups, -1).sum(axis=1)
        for layer, scores in zip(anatomy.layers, columns, strict=True)
    ]


def ranking_of(statistics: ModelStatistics, anatomy: ModelAnatomy) -> Ranking:
    """The ranking that a model with these statistics, of kind ACTIVATIONS or SECOND_ORDER, is registered with."""
    if statistics.kind is StatisticsKind.SECOND_ORDER:
        channels, eliminated = (statistics.per_layer(name) for name in ("ffn_elimination", "group_elimination"))
        return Ranking.from_scores(anatomy, channels, group_scores=eliminated)
    groups = group_scores(statistics, anatomy)
    return Ranking.from_scores(anatomy, channel_scores(statistics), group_scores=groups)


def _column_scores(statistics: ModelStatistics, norm: str, second_moment: str) -> list[FloatArray]:
    norms, second_moments = statistics.per_layer(norm), statistics.per_layer(second_moment)
    return [norm * np.sqrt(moment) for norm, moment in zip(norms, second_moments, strict=True)]
