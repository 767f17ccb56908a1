"""Room for decodings: arrays that every step writes over, and the views of them that it works on.

To make a view of an array takes as long as to add up a small one, and a step needs thirty: they are made once.
Letters: B candidates, N decisions, D model width, H heads.
"""

from typing import NamedTuple

import numpy as np

from policy_model.problem_features import Float32Array

MOST_CANDIDATES = 16
"""Room for more is not kept: training decodes a thousand problems at once."""


class Scores(NamedTuple):
    """Attention's of one decision, all in one array: of the prefix, and of the decisions up to it."""

    both: Float32Array
    """[B, H, N + n + 1]."""
    as_columns: Float32Array
    """[B, H, n + 1, 1] of the decisions."""
    as_rows: Float32Array
    """[B, H, 1, n + 1] the same."""


class Past(NamedTuple):
    """Keys and values of one block up to a decision, each candidate's own. Values have a last column of ones."""

    here: Float32Array
    """[2, B, H, D / H] the decision's own key and value."""
    keys: Float32Array
    """[B, H, n + 1, D / H]."""
    values: Float32Array
    """[B, H, n + 1, D / H + 1]."""


class Room:
    """Of B candidates. `x` [B, D] is the residual stream; the other arrays are what a block makes of it."""

    def __init__(self, num_blocks: int, candidates: int, num_decisions: int, width: int, num_heads: int) -> None:
        B, N, D, H = candidates, num_decisions, width, num_heads
        self.x, self.normed, self.added, self.attended = np.empty((4, B, D), dtype=np.float32)
        self.length = np.empty((B, 1), dtype=np.float32)
        self.lengths = self.length[:, 0]
        self.query_key_value = np.empty((B, 3 * D), dtype=np.float32)
        by_head = self.query_key_value.reshape(B, 3, H, D // H)
        self.queries, self.queries_of_heads = by_head[:, 0, :, :, None], by_head[:, 0].swapaxes(0, 1)
        self.key_value = by_head[:, 1:].swapaxes(0, 1)
        scores = np.empty((B, H, 2 * N), dtype=np.float32)
        self.prefix_scores = scores[:, :, :N].swapaxes(0, 1)  # [H, B, N]
        self.scores = [
            Scores(scores[:, :, : N + n], scores[:, :, N : N + n, None], scores[:, :, None, N : N + n])
            for n in range(1, N + 1)
        ]
        past = np.ones((num_blocks, 2, B, H, N, D // H + 1), dtype=np.float32)
        self.past = [
            [Past(kv[:, :, :, n, :-1], kv[0, :, :, : n + 1, :-1], kv[1, :, :, : n + 1]) for kv in past]
            for n in range(N)
        ]
        # What values add up to, and in the last column what the scores do.
        self.sums_of_prefix = np.empty((H, B, D // H + 1), dtype=np.float32)
        self.sums_of_past = np.empty((B, H, 1, D // H + 1), dtype=np.float32)
        self.sums, self.more_sums = self.sums_of_past[:, :, 0], self.sums_of_prefix.swapaxes(0, 1)
        self.weighted, self.weights = self.sums[..., :-1], self.sums[..., -1:]
        self.attended_by_head = self.attended.reshape(B, H, D // H)
