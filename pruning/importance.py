"""How much each FFN channel matters: the size of what it adds to the residual stream on calibration data.

score_j = ||W_down[:, j]||_2 * sqrt(mean over tokens of x_j^2), with x the input of the down projection: the column
form of Wanda's |W| * ||x|| (Sun et al., arXiv 2306.11695), which structured ports (Wanda-sp) sum over a column.
"""

import numpy as np

from pruning.arrays import FloatArray
from pruning.statistics import ModelStatistics


def channel_scores(statistics: ModelStatistics) -> list[FloatArray]:
    """Scores [L][W] of every FFN channel, from statistics of kind ACTIVATIONS: what a registered model is ranked by."""
    norms, second_moments = statistics.per_layer("down_norm"), statistics.per_layer("ffn_second_moment")
    return [norm * np.sqrt(moment) for norm, moment in zip(norms, second_moments, strict=True)]
