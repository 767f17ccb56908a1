"""Moves at complete choices: one decision goes up, another pays for it.

The level-switch mutation of EvoPress (arXiv 2410.14649, section 3.2), listed in full instead of drawn at random, so
that the search can choose among the moves by what it has learnt.
"""

import numpy as np

from pruning.arrays import BoolArray, IntArray
from pruning.planning.limits import Limits
from pruning.planning.space import Choice

MAX_RISE = 2
"""Options that a single move may raise a decision by."""


def swap_moves(limits: Limits, choice: Choice) -> IntArray:
    """All choices [n, N] one move away that leave less than a step of some limit over: a decision up by 1..MAX_RISE
    options, at most one other down.

    In a fixed order; empty if there are none.
    """
    excess, counts, step = limits.table.excess, limits.space.counts, limits.table.largest_step
    N, K = excess.shape[1:]
    decisions, now = np.arange(N), np.asarray(choice, dtype=np.int64)
    own = excess[:, decisions, now]  # [J, N]
    higher = now[:, None] + np.arange(1, MAX_RISE + 1)
    rises = higher < counts[:, None]  # [N, MAX_RISE]
    rise = excess[:, decisions[:, None], np.minimum(higher, counts[:, None] - 1)] - own[:, :, None]
    after = limits.slack(now)[:, None, None] - rise  # [J, N, MAX_RISE]
    # What is left when decision j pays for that by going down to option k: [J, N, MAX_RISE, N, K].
    left = after[:, :, :, None, None] + (own[:, :, None] - excess)[:, None, None]
    lower = np.arange(K) < now[:, None]
    possible = rises[:, :, None, None] & lower & ~np.eye(N, dtype=bool)[:, None, :, None]
    rising, by, paying, to = np.nonzero(possible & _uses_up(left, step[:, None, None, None, None]))
    neighbours = np.repeat(now[None], len(rising), axis=0)
    rows = np.arange(len(rising))
    neighbours[rows, rising] += by + 1
    neighbours[rows, paying] = to
    alone, by = np.nonzero(rises & _uses_up(after, step[:, None, None]))
    unpaid = np.repeat(now[None], len(alone), axis=0)
    unpaid[np.arange(len(alone)), alone] += by + 1
    return np.concatenate([unpaid, neighbours])


def _uses_up(left: IntArray, step: IntArray) -> BoolArray:
    """Of what is left of each limit, along the first axis: nothing is exceeded, and less than a step of one is left."""
    meets: BoolArray = np.all(left >= 0, axis=0)
    uses: BoolArray = np.any(left < step, axis=0)
    return meets & uses
