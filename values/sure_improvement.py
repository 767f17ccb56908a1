"""Whether one choice is better than another by more than chance, fold by fold: what a simpler one is given up for.

Of choices that are as good as each other within a standard error the simplest is taken: a rule of Breiman et al.
("Classification and Regression Trees", 1984, section 3.4.3).
"""

import math
from collections.abc import Sequence

import numpy as np

from pruning.measuring.metrics import FoldMetrics


def sure_to_be_better(one: Sequence[FoldMetrics], other: Sequence[FoldMetrics]) -> bool:
    """Whether the KL of `one` is less by more than a standard error of the difference, over folds of equal tokens.

    Nothing is sure of fewer than two folds, or of others than those of `other`.
    """
    if len(one) < 2 or [fold.num_tokens for fold in one] != [fold.num_tokens for fold in other]:
        return False
    differences = np.array([(x.kl - y.kl) * x.num_tokens for x, y in zip(one, other, strict=True)])
    return float(differences.sum()) < -math.sqrt(len(differences)) * float(differences.std(ddof=1))
