"""Evolution: mutations keep the budget, generations keep the best, everything is counted."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from pruning.allocators.evolution import evolve, mutate
from pruning.allocators.uniform import uniform_configuration
from pruning.errors import InfeasibleTargetError
from pruning.measuring.metrics import Metrics, Widths
from pruning.planning.levels import LevelGrid

UNEVEN = LevelGrid(
    widths=((8, 16, 24, 32),) * 4,
    costs=tuple(tuple(w * p for w in (8, 16, 24, 32)) for p in (3, 5, 3, 9)),
    round_to=8,
)


def even_grid(num_layers: int, num_levels: int) -> LevelGrid:
    row = tuple(range(1, num_levels + 1))
    return LevelGrid(widths=(row,) * num_layers, costs=(row,) * num_layers, round_to=1)


class FarFrom:
    """KL = squared distance of the widths from a secret."""

    def __init__(self, secret: Sequence[int]) -> None:
        self.secret = np.asarray(secret)
        self.calls: list[int] = []

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        self.calls.append(len(widths))
        return [Metrics(float(((np.array(w) - self.secret) ** 2).sum()), 0.0, 0.0, 1, 1) for w in widths]


def test_a_mutation_keeps_the_budget_and_uses_it_up() -> None:
    rng = np.random.default_rng(0)
    budget = 300
    parent = uniform_configuration(UNEVEN, budget)
    children = {mutate(UNEVEN, parent, budget, rng) for _ in range(200)}
    assert len(children) > 10
    for child in children:
        left = budget - UNEVEN.cost(child)
        assert left >= 0
        assert all(k == 4 or UNEVEN.costs[i][k] - UNEVEN.costs[i][k - 1] > left for i, k in enumerate(child))


def test_a_single_switch_moves_one_level() -> None:
    grid, rng = even_grid(5, 4), np.random.default_rng(1)
    moved = [sum(abs(a - 2) for a in mutate(grid, (2,) * 5, 10, rng)) for _ in range(300)]
    assert min(moved) in (0, 2)  # several switches may undo each other
    assert max(moved) <= 6
    assert np.mean([m == 2 for m in moved]) > 0.5  # min(a, b) of two draws from {1, 2, 3} is 1 with probability 5/9


def test_finds_a_hidden_configuration() -> None:
    evaluate = FarFrom((4, 1, 3, 1, 2, 1))
    scored = evolve(even_grid(6, 4), 12, evaluate, 200, np.random.default_rng(0))
    assert min(m.kl for m in scored.values()) == 0.0
    assert len(scored) == sum(evaluate.calls)
    assert next(iter(scored)) == (2,) * 6


def test_counts_exactly_and_tells_of_each() -> None:
    told: list[float] = []
    evaluate = FarFrom((1, 1, 1, 1, 4, 4))
    scored = evolve(
        even_grid(6, 4),
        12,
        evaluate,
        30,
        np.random.default_rng(0),
        start=(4, 4, 1, 1, 1, 1),
        on_scored=lambda _, metrics: told.append(metrics.kl),
    )
    assert len(scored) == 30
    assert evaluate.calls == [1, 8, 8, 8, 5]
    assert told == [m.kl for m in scored.values()]
    assert next(iter(scored)) == (4, 4, 1, 1, 1, 1)


def test_stops_where_there_is_nothing_new() -> None:
    everything = [c for c in itertools.product((1, 2, 3), repeat=3) if sum(c) == 6]
    scored = evolve(even_grid(3, 3), 6, FarFrom((1, 2, 3)), 100, np.random.default_rng(0))
    assert set(scored) <= set(everything)
    assert len(scored) >= len(everything) - 1


def test_dense_and_infeasible() -> None:
    assert list(evolve(even_grid(3, 3), 9, FarFrom((3, 3, 3)), 50, np.random.default_rng(0))) == [(3, 3, 3)]
    with pytest.raises(InfeasibleTargetError):
        evolve(even_grid(3, 3), 2, FarFrom((3, 3, 3)), 50, np.random.default_rng(0))


def test_equal_seeds_are_equal() -> None:
    first, second = (
        list(evolve(UNEVEN, 300, FarFrom((32, 8, 8, 16)), 40, np.random.default_rng(seed))) for seed in (3, 3)
    )
    assert first == second
