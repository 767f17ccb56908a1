"""The best configurations of a target that are not all alike: what is tried further with means that suffice for few."""

import math
from collections.abc import Mapping

from pruning.measuring.metrics import Metrics
from pruning.planning.limits import Limits
from pruning.planning.space import Choice

REACH = 2.0
"""A finalist's score over that of the best, at most."""

_APART = 4
"""Finalists differ in at least this part of the decisions, as far as there are such: swap moves change two of them."""


def finalists(scored: Mapping[Choice, Metrics], limits: Limits, count: int) -> list[Choice]:
    """At most `count` of `scored`, by score: the best one first, then those of less than `REACH` times its score.

    Only choices that meet the target's `limits` and use them up count. One that differs from a better finalist in
    fewer than a quarter of the decisions comes in only where there are too few others; of these, those that differ
    most come first.
    """
    ranked = sorted((c for c in scored if limits.is_tight(c)), key=lambda c: (scored[c].score, c))
    ranked = [c for c in ranked if scored[c].score <= REACH * scored[ranked[0]].score]
    found: list[Choice] = []
    for apart in range(max(1, math.ceil(limits.space.num_decisions / _APART)), 0, -1):
        for choice in ranked:
            if len(found) < count and all(_distance(choice, other) >= apart for other in found):
                found.append(choice)
    return sorted(found, key=ranked.index)


def _distance(one: Choice, other: Choice) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))
