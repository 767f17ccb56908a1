"""An instance small enough to enumerate: does the search find the true optimum?

Six decisions of five levels on the reference model: decision i sets the widths of layers 2i and 2i + 1 together. All
15,625 configurations are scored, on a few conversations, in the order in which they share the most layers.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.subject import ENUMERATION, Subject
from mcts.search import SharedKnowledge, TargetSearch
from mcts.sensitivity import scan_choices, scan_sensitivity
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from pruning.measuring.metrics import Metrics, Widths
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.space import Choice, Space

LEVELS = 5
SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
EVALUATIONS = 150
"""Of the search, a target: with the scan, under a sixteenth of the enumeration."""

SEEDS = (0, 1, 2)


class TiedLayers:
    """An Evaluate of 6 widths: each is that of two neighbouring layers."""

    def __init__(self, evaluate: Callable[[Widths], Metrics]) -> None:
        self._evaluate = evaluate
        self.measured: dict[Widths, Metrics] = {}

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        for w in widths:
            if w not in self.measured:
                self.measured[w] = self._evaluate(tuple(x for x in w for _ in range(2)))
        return [self.measured[w] for w in widths]


def check_against_enumeration(subject: Subject) -> dict[str, Any]:
    """Search, then enumerate: for how many targets and seeds was the optimum found, and in how many evaluations?"""
    layers = subject.anatomy.layers
    decisions = len(layers) // 2
    row = tuple(round(layers[0].ffn_width * k / LEVELS) for k in range(1, LEVELS + 1))
    price = sum(layer.ffn_parameters_per_channel for layer in layers[:2])
    space = ffn_space([row] * decisions)
    limits = [_limits(space, price, subject.budget(s, 1)) for s in SPARSITIES]
    runs = [_search(subject, limits, seed) for seed in SEEDS]
    everything = list(itertools.product(range(LEVELS), repeat=decisions))
    enumerated = TiedLayers(partial(subject.evaluate, ENUMERATION))
    kl = np.array([m.kl for m in enumerated([space.units_of(c) for c in everything])])
    spent = limits[0].table.spent(np.array(everything))
    optima = [float(kl[(spent <= x.spare).all(axis=1)].min()) for x in limits]
    most = max(evaluations for _, evaluations in runs)
    return {
        "seeds": list(SEEDS),
        "targets": len(SPARSITIES) * len(SEEDS),
        "optima_found": sum(a == b for found, _ in runs for a, b in zip(found, optima, strict=True)),
        "kl_found": [found for found, _ in runs],
        "kl_optimal": optima,
        "evaluations": most,
        "scan_evaluations": len(scan_choices(space)),
        "configurations": len(everything),
        "share": most / len(everything),
    }


def _limits(space: Space, price: int, budget: int) -> Limits:
    """At most `budget` FFN parameters, where a channel of a pair of layers has `price`."""
    return Limits(space, (Limit(LimitKind.FFN_PARAMETERS, budget, 0, tuple(row * price for row in space.units)),))


def _search(subject: Subject, limits: list[Limits], seed: int) -> tuple[list[float], int]:
    """The least KL found at every budget, and how many configurations were scored for all of them together."""
    evaluate = TiedLayers(partial(subject.evaluate, ENUMERATION))
    space = limits[0].space

    def score(choices: Sequence[Choice]) -> list[Metrics]:
        return evaluate([space.units_of(choice) for choice in choices])

    shared = SharedKnowledge(scan_sensitivity(space, score), [])
    budgets = tuple(x.limits[0].most for x in limits)
    settings = SearchSettings(budgets=budgets, num_evaluations=EVALUATIONS, seed=seed, round_to=1)
    found = []
    for index, budget in enumerate(budgets):
        target = SearchTarget(f"budget {budget}", budget, None)
        found.append(TargetSearch(limits[index], target, score, settings, shared, index=index).run().metrics.kl)
    return found, len(evaluate.measured)
