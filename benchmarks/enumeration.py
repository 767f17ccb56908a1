"""An instance small enough to enumerate: does the search find the true optimum?

Six decisions of five levels on the reference model: decision i sets the widths of layers 2i and 2i + 1 together. All
15,625 configurations are scored, on a few conversations, in the order in which they share the most layers.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.subject import Subject
from mcts.search import SharedKnowledge, TargetSearch
from mcts.sensitivity import scan_configurations, scan_sensitivity
from mcts.settings import SearchSettings, SearchTarget
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import Metrics, Widths
from pruning.planning.levels import LevelGrid

LEVELS = 5
SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
EVALUATIONS = 150
"""Of the search, a target: with the scan, under a sixteenth of the enumeration."""

SEEDS = (0, 1, 2)


class TiedLayers:
    """An Evaluate of 6 widths: each is that of two neighbouring layers."""

    def __init__(self, evaluate: ConfigurationEvaluator) -> None:
        self._evaluate = evaluate
        self.measured: dict[Widths, Metrics] = {}

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        for w in widths:
            if w not in self.measured:
                self.measured[w] = self._evaluate.evaluate([x for x in w for _ in range(2)])
        return [self.measured[w] for w in widths]


def check_against_enumeration(subject: Subject) -> dict[str, Any]:
    """Search, then enumerate: for how many targets and seeds was the optimum found, and in how many evaluations?"""
    layers = subject.anatomy.layers
    decisions = len(layers) // 2
    row = tuple(round(layers[0].ffn_width * k / LEVELS) for k in range(1, LEVELS + 1))
    price = sum(layer.ffn_parameters_per_channel for layer in layers[:2])
    grid = LevelGrid(widths=(row,) * decisions, costs=(tuple(w * price for w in row),) * decisions, round_to=1)
    budgets = [subject.budget(s, 1) for s in SPARSITIES]
    runs = [_search(subject, grid, budgets, seed) for seed in SEEDS]
    everything = list(itertools.product(range(1, LEVELS + 1), repeat=decisions))
    enumerated = TiedLayers(subject.evaluator("enumeration"))
    kl = np.array([m.kl for m in enumerated([tuple(grid.widths_of(c)) for c in everything])])
    costs = np.array([grid.cost(c) for c in everything])
    optima = [float(kl[costs <= budget].min()) for budget in budgets]
    most = max(evaluations for _, evaluations in runs)
    return {
        "seeds": list(SEEDS),
        "targets": len(SPARSITIES) * len(SEEDS),
        "optima_found": sum(a == b for found, _ in runs for a, b in zip(found, optima, strict=True)),
        "kl_found": [found for found, _ in runs],
        "kl_optimal": optima,
        "evaluations": most,
        "scan_evaluations": len(scan_configurations(grid)),
        "configurations": len(everything),
        "share": most / len(everything),
    }


def _search(subject: Subject, grid: LevelGrid, budgets: list[int], seed: int) -> tuple[list[float], int]:
    """The least KL found at every budget, and how many configurations were scored for all of them together."""
    evaluate = TiedLayers(subject.evaluator("enumeration"))
    shared = SharedKnowledge(scan_sensitivity(grid, evaluate), [])
    settings = SearchSettings(budgets=tuple(budgets), num_evaluations=EVALUATIONS, seed=seed, round_to=1)
    found = []
    for index, budget in enumerate(budgets):
        target = SearchTarget(f"budget {budget}", budget, None)
        found.append(TargetSearch(grid, target, evaluate, settings, shared, index=index).run().metrics.kl)
    return found, len(evaluate.measured)
