"""Random search: uniform over what is feasible, exactly."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pruning.allocators.random_search import ConfigurationSampler, search_randomly
from pruning.errors import InfeasibleTargetError
from tests.pruning.allocators.test_evolution import UNEVEN, FarFrom, even_grid


def test_every_feasible_configuration_is_equally_likely() -> None:
    # Six levels over three layers of levels 1..3: 7 configurations.
    sampler, rng = ConfigurationSampler(even_grid(3, 3), 6), np.random.default_rng(0)
    drawn = Counter(sampler.draw(rng) for _ in range(7000))
    assert set(drawn) == {c for c in itertools.product((1, 2, 3), repeat=3) if sum(c) == 6}
    assert all(abs(count - 1000) < 4 * np.sqrt(1000) for count in drawn.values())


def test_uneven_costs_use_the_budget_up() -> None:
    sampler, rng = ConfigurationSampler(UNEVEN, 300), np.random.default_rng(0)
    for _ in range(100):
        assert 0 <= 300 - UNEVEN.cost(sampler.draw(rng)) < UNEVEN.largest_step


def test_all_different_and_as_many_as_asked_for() -> None:
    evaluate = FarFrom((2, 2, 2, 2, 2, 2))
    scored = search_randomly(even_grid(6, 4), 12, evaluate, 20, np.random.default_rng(0))
    assert len(scored) == 20
    assert evaluate.calls == [8, 8, 4]


def test_stops_where_there_is_nothing_new() -> None:
    scored = search_randomly(even_grid(3, 3), 6, FarFrom((2, 2, 2)), 100, np.random.default_rng(0))
    assert len(scored) == 7
    assert min(m.kl for m in scored.values()) == 0.0


def test_a_budget_below_everything_is_refused() -> None:
    with pytest.raises(InfeasibleTargetError):
        ConfigurationSampler(even_grid(3, 3), 2)
