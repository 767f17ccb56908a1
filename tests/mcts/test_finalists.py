"""Finalists: the best of what uses a target up, and not all alike."""

from mcts.finalists import finalists
from pruning.measuring.metrics import Metrics
from tests.mcts.landscapes import make_limits, metrics_of

LIMITS = make_limits(8, 3, budget=16)


def scored(*found: tuple[tuple[int, ...], float]) -> dict[tuple[int, ...], Metrics]:
    return {choice: metrics_of(kl) for choice, kl in found}


BEST = (2, 0, 1, 1, 1, 1, 1, 1)
NEAR = (0, 2, 1, 1, 1, 1, 1, 1)
AKIN = (2, 1, 0, 1, 1, 1, 1, 1)
FAR = (1, 1, 1, 1, 1, 1, 2, 0)


def test_alike_ones_come_in_where_there_are_too_few_others_and_by_score() -> None:
    found = scored((FAR, 1.3), (AKIN, 1.1), (BEST, 1.0), (NEAR, 1.2))
    # A quarter of eight decisions: two. All differ from the best in two or more.
    assert finalists(found, LIMITS, 2) == [BEST, AKIN]
    assert finalists(found, LIMITS, 9) == [BEST, AKIN, NEAR, FAR]
    limits = make_limits(12, 3, budget=24)
    long = {choice + (1,) * 4: metrics for choice, metrics in found.items()}
    # A quarter of twelve: three, which FAR alone has.
    assert finalists(long, limits, 2) == [BEST + (1,) * 4, FAR + (1,) * 4]
    assert finalists(long, limits, 3)[1] == AKIN + (1,) * 4


def test_what_is_much_worse_or_does_not_use_the_target_up_is_none() -> None:
    over, under = (2, 1, 1, 1, 1, 1, 1, 1), (1, 0, 1, 1, 1, 1, 1, 1)
    found = scored((BEST, 1.0), (FAR, 2.1), (over, 0.1), (under, 0.2))
    assert finalists(found, LIMITS, 4) == [BEST]
    assert finalists(scored((over, 0.1)), LIMITS, 4) == []
