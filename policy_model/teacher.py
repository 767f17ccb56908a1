"""The policy's teacher: good choices for many problems at once, by descent on the values.

As the descent of a request (`local_search`), over exchanges of options: one decision goes up, another one down, or one
goes up alone. Here all problems of a chunk take a step together, and a step goes from stair to stair of the problem's
own costs: what costs nothing is taken.
Letters: P problems, J limits, N decisions, K options, M anchors of the values.
"""

import numpy as np

from policy_model.elites import Elites
from policy_model.local_search import SMALLEST_GAIN, LevelValues
from policy_model.problems import Problems
from pruning.arrays import BoolArray, FloatArray, IntArray
from values.basis import Float32Array
from values.kl_floor import KL_FLOOR_NATS

MOST_TOGETHER = 128
FEW_TOGETHER = 8
CHUNK_NUMBERS = 2**20
"""Problems take a step together, as many as have so many numbers [P, N, M] between them: more leave the cache, and take
half as long again each (64 decisions, 1,000 anchors)."""

NUM_JUDGED = 3
"""Neighbours of a choice that are judged in full: those that promise most."""

MAX_ROUNDS = 32
HALVINGS = 30


class Teacher:
    """Solves problems over the choices of one model's space.

    Args:
        table: the values at the options of the space.
        elites: the best measured choices.
    """

    def __init__(self, table: LevelValues, elites: Elites) -> None:
        self.table, self._elites = table, elites
        scale = np.float32(-1.0 / table.values.kernel.length)
        self._correlation: Float32Array = np.exp(scale * table.apart)  # [N, K, M] of each decision alone
        N, _, M = self._correlation.shape
        self._together = min(max(CHUNK_NUMBERS // max(N * M, 1), FEW_TOGETHER), MOST_TOGETHER)

    def solve(self, problems: Problems, starts: list[IntArray]) -> tuple[IntArray, FloatArray]:
        """The best choices [P, N] that descents from `starts`, each [P, N], end at; and their pessimistic log KL."""
        ends = [self._improve(problems, start) for start in starts]
        scores = np.stack([score for _, score in ends])
        best = scores.argmin(axis=0)
        rows = np.arange(len(problems))
        return np.stack([choices for choices, _ in ends])[best, rows], scores[best, rows]

    def measured(self, problems: Problems) -> IntArray:
        """[P, N] the best measured choice that fits each problem; the narrowest where none does."""
        N, K = self.table.own.shape
        choices, levels = np.zeros((len(problems), N), dtype=np.int64), self._elites.levels
        if not len(levels):
            return choices
        chosen = (levels[:, :, None] == np.arange(K)).reshape(len(levels), N * K).astype(np.float64)
        for rows in _chunks(len(problems), 1024):
            # Products of integers below 2**53 are exact.
            excess = problems.costs.excess[:, rows].reshape(-1, len(rows), N * K).astype(np.float64)
            over: FloatArray = (excess @ chosen.T - problems.slack[rows].T[:, :, None]).max(axis=0)
            first, least = np.less_equal(over, 0.0).argmax(axis=1), over.min(axis=1)
            choices[rows] = np.where((least <= 0.0)[:, None], levels[first], 0)
        return choices

    def additive(self, problems: Problems) -> IntArray:
        """[P, N] what fits at the least price on costs at which each decision, by itself, takes the option of least own
        KL and price: the Lagrangian bound's choice (Fisher, Management Science 27, 1981), one price for all limits."""
        paid = (problems.costs.excess / (problems.slack.T[:, :, None, None] + 1.0)).sum(axis=0)
        scale = float(self.table.own.max()) + KL_FLOOR_NATS
        low, high = np.full(len(problems), 1e-9), np.full(len(problems), 1e6)
        best = np.zeros(paid.shape[:2], dtype=np.int64)
        for _ in range(HALVINGS):
            price = np.sqrt(low * high)
            choices = (self.table.own / scale + price[:, None, None] * paid).argmin(axis=2)
            fits = (problems.costs.spent(choices) <= problems.slack).all(axis=1)
            best[fits] = choices[fits]
            high, low = np.where(fits, price, high), np.where(fits, low, price)
        return best

    def judge(self, choices: IntArray) -> FloatArray:
        """Pessimistic log KL [P] of choices [P, N]."""
        return np.concatenate(
            [self.table.pessimistic(choices[rows]) for rows in _chunks(len(choices), 4 * MOST_TOGETHER)]
        )

    def _improve(self, problems: Problems, starts: IntArray) -> tuple[IntArray, FloatArray]:
        """Where descents from `starts` [P, N] end, and the pessimistic log KL [P] there."""
        free = problems.costs.free
        N = starts.shape[1]
        choices = np.take_along_axis(free, starts[:, :, None], axis=2)[:, :, 0]
        scores = self.judge(choices)
        active = np.arange(len(problems))
        for _ in range(MAX_ROUNDS):
            going: list[IntArray] = []
            for chunk in _chunks(len(active), self._together):
                rows = active[chunk]
                moved, fits = self._promising(problems.of(rows), choices[rows], free[rows])
                found = self.table.pessimistic(moved.reshape(-1, N)).reshape(len(rows), -1)
                found = np.where(fits, found, np.inf)
                best = found.argmin(axis=1)
                least = found[np.arange(len(rows)), best]
                better = least < scores[rows] - SMALLEST_GAIN
                choices[rows[better]] = moved[better, best[better]]
                scores[rows[better]] = least[better]
                going.append(rows[better])
            active = np.concatenate(going)
            if not len(active):
                break
        return choices, scores

    def _promising(self, problems: Problems, choices: IntArray, free: IntArray) -> tuple[IntArray, BoolArray]:
        """[P, NUM_JUDGED, N] the neighbours of `choices` [P, N] that promise most, and whether they are any [P, ..].

        What a move does to the own KLs and to the process is exact; the regression's part is taken as the sum of its
        halves. Beside the dense model the fade is not 1: what is judged is judged in full.
        """
        P, N = choices.shape
        n = np.arange(N)
        up = _at(free, np.minimum(choices + 1, free.shape[2] - 1))
        # The option before the first of this stair; itself where there is none.
        first = (free == choices[:, :, None]).argmax(axis=2)
        down = np.where(first > 0, first - 1, choices)
        excess = problems.costs.excess
        now = np.stack([_at(of_limit, choices) for of_limit in excess])
        dearer = np.stack([_at(of_limit, up) for of_limit in excess]) - now  # [J, P, N]
        freed = now - np.stack([_at(of_limit, down) for of_limit in excess])
        freed = np.concatenate([freed, np.zeros((*freed.shape[:2], 1), dtype=np.int64)], axis=2)
        left = problems.slack.T - now.sum(axis=2)
        valid = (left[:, :, None, None] - dearer[..., None] + freed[:, :, None] >= 0).all(axis=0)  # [P, N, N + 1]
        valid[:, n, n] = False
        valid &= (up != choices)[:, :, None]
        valid[:, :, :N] &= (down != choices)[:, None]

        own = self.table.own[n, choices]
        own_up, own_down = self.table.own[n, up] - own, self.table.own[n, down] - own
        own_down = np.concatenate([own_down, np.zeros((P, 1))], axis=1)
        total = own.sum(axis=1)[:, None, None] + own_up[:, :, None] + own_down[:, None]
        promise = np.log(np.maximum(total, 0.0) + KL_FLOOR_NATS)
        promise += self._regression(choices, up, down)
        promise += self._process(choices, up, down)
        promise = np.where(valid, promise, np.inf).reshape(P, -1)
        count = min(NUM_JUDGED, promise.shape[1])
        chosen = np.argpartition(promise, count - 1, axis=1)[:, :count]
        raised, lowered = np.divmod(chosen, N + 1)
        moved = np.repeat(choices[:, None], count, axis=1)
        rows, places = np.arange(P)[:, None], np.arange(count)[None]
        moved[rows, places, raised] = up[rows, raised]
        exchange = lowered < N
        at = np.minimum(lowered, N - 1)
        moved[rows, places, at] = np.where(exchange, down[rows, at], moved[rows, places, at])
        return moved, np.take_along_axis(valid.reshape(P, -1), chosen, axis=1)

    def _regression(self, choices: IntArray, up: IntArray, down: IntArray) -> FloatArray:
        """[P, N, N + 1] the regression's part of every move, as the sum of what its two halves change."""
        n = np.arange(choices.shape[1])
        of = self.table.values.regression
        now = self.table.fractions_of(choices), self.table.own[n, choices]
        raised, lowered = (of.replacing(*now, self.table.fractions_of(x), self.table.own[n, x]) for x in (up, down))
        lowered -= of(*now)[:, None]
        lowered = np.concatenate([lowered, np.zeros((len(choices), 1))], axis=1)
        regression: FloatArray = raised[:, :, None] + lowered[:, None]
        return regression

    def _process(self, choices: IntArray, up: IntArray, down: IntArray) -> Float32Array:
        """[P, N, N + 1] the process's part of every move: one matrix product over the anchors."""
        n = np.arange(choices.shape[1])
        now = self._correlation[n, choices]  # [P, N, M]
        here = np.prod(now, axis=1) * self.table.values.faded_alpha
        np.divide(np.float32(1.0), now, out=now)
        raised = self._correlation[n, up]
        raised *= now
        raised *= here[:, None]
        now *= self._correlation[n, down]
        process: Float32Array = np.concatenate(
            [raised @ now.transpose(0, 2, 1), raised.sum(axis=2, keepdims=True)], axis=2
        )
        return process


def _at(table: IntArray, choices: IntArray) -> IntArray:
    """[P, N] of `table` [P, N, K]."""
    return np.take_along_axis(table, choices[:, :, None], axis=2)[:, :, 0]


def _chunks(count: int, size: int) -> list[IntArray]:
    return np.array_split(np.arange(count), max(1, -(-count // size)))
