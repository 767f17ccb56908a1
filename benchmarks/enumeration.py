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
from pruning.evaluation import ConfigurationEvaluator
from pruning.levels import LevelGrid
from pruning.metrics import Metrics, Widths

DECISIONS = 6
LEVELS = 5
SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
EVALUATIONS = 250
"""Of the search, a target: with the scan, under a tenth of the enumeration."""


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
    """Search, then enumerate; says for how many targets the search found the optimum, and with how many evaluations."""
    layers = subject.anatomy.layers
    row = tuple(round(layers[0].ffn_width * k / LEVELS) for k in range(1, LEVELS + 1))
    price = sum(layer.ffn_parameters_per_channel for layer in layers[:2])
    grid = LevelGrid(widths=(row,) * DECISIONS, costs=(tuple(w * price for w in row),) * DECISIONS, round_to=1)
    searched = TiedLayers(subject.evaluator("enumeration"))
    shared = SharedKnowledge(scan_sensitivity(grid, searched), [])
    budgets = [subject.budget(s, 1) for s in SPARSITIES]
    settings = SearchSettings(budgets=tuple(budgets), num_evaluations=EVALUATIONS, round_to=1)
    found = []
    for index, (sparsity, budget) in enumerate(zip(SPARSITIES, budgets, strict=True)):
        target = SearchTarget(f"{sparsity:g}", budget, sparsity)
        found.append(TargetSearch(grid, target, searched, settings, shared, index=index).run().metrics.kl)
    everything = list(itertools.product(range(1, LEVELS + 1), repeat=DECISIONS))
    enumerated = TiedLayers(subject.evaluator("enumeration"))
    kl = np.array([m.kl for m in enumerated([tuple(grid.widths_of(c)) for c in everything])])
    costs = np.array([grid.cost(c) for c in everything])
    optima = [float(kl[costs <= budget].min()) for budget in budgets]
    return {
        "targets": len(SPARSITIES),
        "optima_found": sum(a == b for a, b in zip(found, optima, strict=True)),
        "kl_found": found,
        "kl_optimal": optima,
        "evaluations": len(searched.measured),
        "scan_evaluations": len(scan_configurations(grid)),
        "configurations": len(everything),
        "share": len(searched.measured) / len(everything),
    }
