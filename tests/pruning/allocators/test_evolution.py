"""Evolution: mutations keep the budget, generations keep the best, everything is counted."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from pruning.allocators.evolution import evolve, mutate
from pruning.allocators.uniform import uniform_choice
from pruning.errors import InfeasibleTargetError
from pruning.measuring.metrics import Metrics
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.space import Choice
from tests.pruning.made_up_limits import is_tight, limit, limits_of

UNEVEN = limits_of(limit(LimitKind.FFN_PARAMETERS, 300, 0, *([w * p for w in (8, 16, 24, 32)] for p in (3, 5, 3, 9))))


def even_limits(num_layers: int, num_levels: int, total: int) -> Limits:
    """Layers whose level k costs k: their choice sums to at most `total`."""
    return limits_of(limit(LimitKind.FFN_PARAMETERS, total, 0, *[range(num_levels)] * num_layers))


class FarFrom:
    """KL = squared distance from a secret choice."""

    def __init__(self, secret: Sequence[int]) -> None:
        self.secret = np.asarray(secret)
        self.calls: list[int] = []

    def __call__(self, choices: Sequence[Choice]) -> list[Metrics]:
        self.calls.append(len(choices))
        return [Metrics(float(((np.array(c) - self.secret) ** 2).sum()), 0.0, 0.0, 1, 1) for c in choices]


def test_a_mutation_keeps_the_limits_and_uses_them_up() -> None:
    rng = np.random.default_rng(0)
    parent = tuple(uniform_choice(UNEVEN).tolist())
    children = {mutate(UNEVEN, parent, rng) for _ in range(200)}
    assert len(children) > 10
    assert all(is_tight(UNEVEN, child) for child in children)


def test_a_mutation_keeps_several_limits() -> None:
    rng = np.random.default_rng(0)
    several = limits_of(
        limit(LimitKind.MEMORY_BYTES, 14, 0, (1, 2, 3, 4), (2, 4, 6), (1, 3, 5, 7), (1, 2)),
        limit(LimitKind.LATENCY_MS, 20, 0, (4, 4, 8, 8), (1, 5, 6), (2, 3, 4, 5), (3, 9)),
    )
    parent = tuple(uniform_choice(several).tolist())
    children = {mutate(several, parent, rng) for _ in range(200)}
    assert len(children) > 3
    assert all(is_tight(several, child) for child in children)


def test_a_single_switch_moves_one_level() -> None:
    limits, rng = even_limits(5, 4, 5), np.random.default_rng(1)
    moved = [sum(abs(a - 1) for a in mutate(limits, (1,) * 5, rng)) for _ in range(300)]
    assert min(moved) in (0, 2)  # several switches may undo each other
    assert max(moved) <= 6
    assert np.mean([m == 2 for m in moved]) > 0.5  # min(a, b) of two draws from {1, 2, 3} is 1 with probability 5/9


def test_finds_a_hidden_choice() -> None:
    score = FarFrom((3, 0, 2, 0, 1, 0))
    scored = evolve(even_limits(6, 4, 6), score, 200, np.random.default_rng(0))
    assert min(m.kl for m in scored.values()) == 0.0
    assert len(scored) == sum(score.calls)
    assert next(iter(scored)) == (1,) * 6


def test_counts_exactly_and_tells_of_each() -> None:
    told: list[float] = []
    score = FarFrom((0, 0, 0, 0, 3, 3))
    scored = evolve(
        even_limits(6, 4, 6),
        score,
        30,
        np.random.default_rng(0),
        start=(3, 3, 0, 0, 0, 0),
        on_scored=lambda _, metrics: told.append(metrics.kl),
    )
    assert len(scored) == 30
    assert score.calls == [1, 8, 8, 8, 5]
    assert told == [m.kl for m in scored.values()]
    assert next(iter(scored)) == (3, 3, 0, 0, 0, 0)


def test_stops_where_there_is_nothing_new() -> None:
    everything = [c for c in itertools.product((0, 1, 2), repeat=3) if sum(c) == 3]
    scored = evolve(even_limits(3, 3, 3), FarFrom((0, 1, 2)), 100, np.random.default_rng(0))
    assert set(scored) <= set(everything)
    assert len(scored) >= len(everything) - 1


def test_dense_and_infeasible() -> None:
    dense = even_limits(3, 3, 6)
    assert list(evolve(dense, FarFrom((2, 2, 2)), 50, np.random.default_rng(0))) == [(2, 2, 2)]
    with pytest.raises(InfeasibleTargetError):
        even_limits(3, 3, -1)


def test_equal_seeds_are_equal() -> None:
    first, second = (list(evolve(UNEVEN, FarFrom((3, 0, 0, 1)), 40, np.random.default_rng(seed))) for seed in (3, 3))
    assert first == second
