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
from mcts.sensitivity import scan_choices, scan_sensitivity
from mcts.settings import SearchSettings, SearchTarget
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import Metrics
from pruning.planning.limits import Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.space import Choice, Decision, Options, Space

LEVELS = 5
SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
EVALUATIONS = 150
"""Of the search, a target: with the scan, under a sixteenth of the enumeration."""

SEEDS = (0, 1, 2)


class TiedLayers:
    """A Score that measures each choice once."""

    def __init__(self, space: Space, evaluate: ConfigurationEvaluator) -> None:
        self._space, self._evaluate = space, evaluate
        self.measured: dict[Choice, Metrics] = {}

    def __call__(self, choices: Sequence[Choice], /) -> list[Metrics]:
        for choice in choices:
            if choice not in self.measured:
                widths = [width for width in self._space.units_of(choice) for _ in range(2)]
                self.measured[choice] = self._evaluate.evaluate(widths)
        return [self.measured[choice] for choice in choices]


def tied_layers(anatomy: ModelAnatomy) -> Space:
    """Every two neighbouring layers keep the same width, one of `LEVELS`."""
    dense = {Site(layer.index, Sublayer.FFN): layer.ffn_width for layer in anatomy.layers}
    widest = anatomy.layers[0].ffn_width
    row = Options(np.array([round(widest * k / LEVELS) for k in range(1, LEVELS + 1)], dtype=np.int64))
    sites = list(dense)
    pairs = zip(sites[::2], sites[1::2], strict=True)
    return Space(tuple(Decision(pair, (row, row)) for pair in pairs), dense)


def check_against_enumeration(subject: Subject) -> dict[str, Any]:
    """Search, then enumerate: for how many targets and seeds was the optimum found, and in how many evaluations?"""
    space, price = tied_layers(subject.anatomy), ffn_parameters(subject.anatomy)
    budgets = [subject.budget(s, 1) for s in SPARSITIES]
    targets = [Limits(space, (price.limit(space, budget),)) for budget in budgets]
    runs = [_search(subject, targets, seed) for seed in SEEDS]
    everything = list(itertools.product(range(LEVELS), repeat=space.num_decisions))
    enumerated = TiedLayers(space, subject.evaluator("enumeration"))
    kl = np.array([m.kl for m in enumerated(everything)])
    costs = np.array([price.cost(space.architecture(choice)) for choice in everything])
    optima = [float(kl[costs <= budget].min()) for budget in budgets]
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


def _search(subject: Subject, targets: Sequence[Limits], seed: int) -> tuple[list[float], int]:
    """The least KL found at every target, and how many configurations were scored for all of them together."""
    space, budgets = targets[0].space, [limits.limits[0].most for limits in targets]
    score = TiedLayers(space, subject.evaluator("enumeration"))
    shared = SharedKnowledge(scan_sensitivity(space, score), [])
    settings = SearchSettings(budgets=tuple(budgets), num_evaluations=EVALUATIONS, seed=seed, round_to=1)
    found = []
    for index, (limits, budget) in enumerate(zip(targets, budgets, strict=True)):
        target = SearchTarget(f"budget {budget}", budget, None)
        found.append(TargetSearch(limits, target, score, settings, shared, index=index).run().metrics.kl)
    return found, len(score.measured)
