"""OWL: layers with more outlier weights keep more.

Yin et al., arXiv 2310.05175. D_l is the share of a layer's weights whose score |W_ij| ||x_j|| is over M = 5 times the
layer's mean; rescaled to [0, 2 lambda], it moves the layer's sparsity away from the target S: s_l = S - D_l + mean(D).
Differs from the paper: sparsity is of FFN channels, not of single weights; the mean is weighted by FFN parameters, so
that the budget is met where layers are uneven. Channels go in the model's registered order, which is Wanda's, as OWL is
used with Wanda.
"""

import numpy as np

from pruning.allocators.allocation import Allocation, architecture_near, parameter_budget
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.limits import Limits

LAMBDA = 0.08
"""The paper's choice for 7B models: a layer's sparsity is at most 2 lambda from another's."""


def allocate_owl(anatomy: ModelAnatomy, statistics: ModelStatistics, limits: Limits) -> Allocation:
    """Widths that meet `limits`.

    Raises:
        FingerprintMismatchError, CheckpointError, InputError: as `ModelStatistics.check`, for ACTIVATIONS.
    """
    statistics.check(anatomy, StatisticsKind.ACTIVATIONS)
    budget = parameter_budget(anatomy, limits)
    parameters = np.array([layer.ffn_parameters for layer in anatomy.layers], dtype=np.float64)
    retentions = owl_retentions(statistics.arrays["outlier_ratio"], parameters, budget / anatomy.ffn_parameters)
    wished = [layer.ffn_width * float(r) for layer, r in zip(anatomy.layers, retentions, strict=True)]
    return Allocation(architecture_near(limits, wished))


def owl_retentions(
    outlier_ratio: FloatArray, parameters: FloatArray, retention: float, *, lambda_: float = LAMBDA
) -> FloatArray:
    """Retentions [L], 1 - s_l, whose mean weighted by `parameters` [L] is `retention`; not clipped to [0, 1]."""
    spread = float(np.ptp(outlier_ratio))
    rescaled = (outlier_ratio - outlier_ratio.min()) / spread * 2 * lambda_ if spread > 0 else np.zeros(len(parameters))
    result: FloatArray = retention + rescaled - np.average(rescaled, weights=parameters)
    return result
