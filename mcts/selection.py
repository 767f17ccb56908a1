"""Which edge a simulation follows: PUCT over values that do not know the metric's scale.

    score(a) = Q(a) + c_puct * P(a) * sqrt(sum_b N(b) + 1) / (1 + N(a))

PUCT as in AlphaZero (Silver et al., arXiv 1712.01815, methods; Rosin 2011). One player and exact evaluations make the
best value below an edge worth as much as the mean (single-player MCTS, Schadd et al. 2008), so

    Q(a) = S* * (mean(a) + max(a)) / 2,   mean and max over the 1 / S below a,   S* the least score so far.

A configuration counts S* / S = exp(-log(S / S*)), a reward in (0, 1] that stays what it is if all scores are scaled,
and follows the incumbent without touching what is stored. An unvisited edge starts from the mean of the visited ones.
"""

import numpy as np

from mcts.tree import Node
from pruning.arrays import FloatArray


def action_values(node: Node, best_score: float) -> FloatArray:
    """Q [A] in [0, 1]; 0 for all if nothing below `node` has a value yet."""
    visited = node.visit_count > 0
    total = int(node.visit_count.sum())
    start = best_score * float(node.value_sum.sum()) / total if total else 0.0
    mean = node.value_sum / np.maximum(node.visit_count, 1)
    values: FloatArray = np.where(visited, best_score * 0.5 * (mean + node.value_max), start)
    return values


def puct_scores(node: Node, best_score: float, c_puct: float) -> FloatArray:
    """PUCT scores [A]; minus infinity for edges that have nothing left to visit."""
    exploration = node.prior * np.sqrt(float(node.visit_count.sum()) + 1.0) / (1.0 + node.visit_count)
    scores: FloatArray = action_values(node, best_score) + c_puct * exploration
    scores[node.complete] = -np.inf
    return scores


def select_action(node: Node, best_score: float, c_puct: float) -> int:
    """Index of the edge with the highest PUCT score; of equal ones, the last option."""
    scores = puct_scores(node, best_score, c_puct)
    return len(scores) - 1 - int(np.argmax(scores[::-1]))
