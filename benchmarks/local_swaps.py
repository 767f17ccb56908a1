"""The additive program's choice, improved by swap moves: what a search without a tree and without a process does.

Steepest descent as far as the evaluations reach: at each choice the swap moves that were not scored yet are taken in
the order in which the additive table likes them, a few are scored, and the best of those becomes the next choice if it
is better. Else the next few are. A choice has hundreds of moves, so scoring all of them for one step would take more
evaluations than there are.
"""

import numpy as np

from mcts.moves import swap_moves
from pruning.allocators.evolution import Score
from pruning.arrays import FloatArray
from pruning.measuring.metrics import Metrics
from pruning.planning.limits import Limits
from pruning.planning.space import Choice

MOVES_A_STEP = 2
"""Swap moves scored before the best of them is taken. With 18 evaluations two are better than four or nine (on 40 seeds
of the tests' landscapes: KL .868, .870 and .873 times the start's)."""


def improve_by_swaps(
    limits: Limits, score: Score, num_evaluations: int, sensitivity: FloatArray, start: Choice
) -> dict[Choice, Metrics]:
    """Score at most `num_evaluations` choices, `start` [N] first; all of them, in order.

    `sensitivity` [N, K] is the one-decision scan.
    """
    scored = dict(zip([start], score([start]), strict=True))
    current = start
    while len(scored) < num_evaluations:
        moves = swap_moves(limits, current)
        losses = sensitivity[np.arange(len(sensitivity)), moves].sum(axis=1)
        ordered = [tuple(moves[i].tolist()) for i in np.argsort(losses, kind="stable")]
        wanted = min(MOVES_A_STEP, num_evaluations - len(scored))
        step = [move for move in ordered if move not in scored][:wanted]
        if not step:
            break
        scored |= dict(zip(step, score(step), strict=True))
        current = min([current, *step], key=lambda choice: scored[choice].score)
    return scored
