"""Random search: uniform over what is feasible, exactly."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pruning.allocators.random_search import ChoiceSampler, search_randomly
from pruning.planning import prices
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.limits import LimitKind
from pruning.planning.target import decoder_byte_limits
from tests.pruning.allocators.test_evolution import UNEVEN, FarFrom, even_limits
from tests.pruning.made_up_limits import limit, limits_of, meets
from tests.service.made_up import made_up_anatomy


def test_every_feasible_choice_is_equally_likely() -> None:
    # Three levels up over three layers of levels 0..2: 7 choices.
    sampler, rng = ChoiceSampler(even_limits(3, 3, 3)), np.random.default_rng(0)
    drawn = Counter(sampler.draw(rng) for _ in range(7000))
    assert set(drawn) == {c for c in itertools.product((0, 1, 2), repeat=3) if sum(c) == 3}
    assert all(abs(count - 1000) < 4 * np.sqrt(1000) for count in drawn.values())


def test_uneven_costs_use_the_budget_up() -> None:
    sampler, rng = ChoiceSampler(UNEVEN), np.random.default_rng(0)
    for _ in range(100):
        assert 0 <= UNEVEN.slack(sampler.draw(rng))[0] < 72  # the largest step: 8 channels of 9


def test_several_limits_are_met() -> None:
    several = limits_of(
        limit(LimitKind.MEMORY_BYTES, 14, 0, (1, 2, 3, 4), (2, 4, 6), (1, 3, 5, 7), (1, 2)),
        limit(LimitKind.LATENCY_MS, 20, 0, (4, 4, 8, 8), (1, 5, 6), (2, 3, 4, 5), (3, 9)),
    )
    sampler, rng = ChoiceSampler(several), np.random.default_rng(0)
    drawn = Counter(sampler.draw(rng) for _ in range(4000))
    assert len(drawn) > 20
    assert all(meets(several, choice) for choice in drawn)
    expected = 4000 / len(drawn)
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in drawn.values())


def test_all_different_and_as_many_as_asked_for() -> None:
    score = FarFrom((1, 1, 1, 1, 1, 1))
    scored = search_randomly(even_limits(6, 4, 6), score, 20, np.random.default_rng(0))
    assert len(scored) == 20
    assert score.calls == [8, 8, 4]


def test_stops_where_there_is_nothing_new() -> None:
    scored = search_randomly(even_limits(3, 3, 3), FarFrom((1, 1, 1)), 100, np.random.default_rng(0))
    assert len(scored) == 7
    assert min(m.kl for m in scored.values()) == 0.0


def test_where_bits_may_change_nothing_is_counted() -> None:
    """16 layers: some 10^9 sums of bytes, each of which would be a state."""
    anatomy = made_up_anatomy(tuple(range(64, 1088, 64)), hidden=32)
    space = coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2)
    limits = decoder_byte_limits(anatomy, space, prices.decoder_bytes(anatomy).total // 2)
    sampler, rng = ChoiceSampler(limits), np.random.default_rng(0)
    drawn = {sampler.draw(rng) for _ in range(10)}
    assert len(drawn) == 10
    assert all(meets(limits, choice) for choice in drawn)
    assert sum(len(steps) for steps in sampler._steps) <= 10 * space.num_decisions


def test_sums_of_nanoseconds_that_never_coincide_are_not_counted_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.allocators.random_search.MOST_COUNTED", 1000)
    rng = np.random.default_rng(0)
    rows = [tuple(np.cumsum(rng.integers(1, 10**9, size=8)).tolist()) for _ in range(24)]
    most = int(0.3 * sum(row[0] for row in rows) + 0.7 * sum(row[-1] for row in rows))
    limits = limits_of(limit(LimitKind.LATENCY_MS, most, 0, *rows))
    sampler = ChoiceSampler(limits)
    drawn = {sampler.draw(rng) for _ in range(20)}
    assert len(drawn) > 10
    assert all(meets(limits, choice) for choice in drawn)
    assert sum(map(len, sampler._steps)) <= 20 * 24
