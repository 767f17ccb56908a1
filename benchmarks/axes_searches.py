"""What each method finds in one space of one model, at equal scored tokens a target.

Every target may have as many configurations scored on the same conversations. What begins with the one-decision scan
pays for its share of it: a seventh, since seven targets share it. That is the same seventh where a space can reach few
of them, which is to the good of the single spaces. A scan has 150 evaluations at most.

    mcts            the product's search by its defaults, one configuration at a time
    mcts-tree       the same with eight simulations of the tree an evaluation
    milp, milp-roots
                    the additive program on the scan, exactly solved: of KL, and of what the search minimises
    milp-complete   of KL, on a scan of every option: all that an additive method can know
    evolution       from equal retention, by KL, one offspring a generation
    shortgpt        layers of least block influence go first, by what the space can take of them
    uniform         the same share everywhere, in fine steps
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.axes_milp import least_sum
from benchmarks.axes_targets import LATENCIES, SPARSITIES, Target, TargetLimits
from benchmarks.measured_model import MeasuredModel
from mcts.search import SharedKnowledge, TargetSearch
from mcts.sensitivity import MAX_SCAN_EVALUATIONS, scan_choices
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from pruning.allocators.evolution import evolve
from pruning.allocators.shortgpt import allocate_shortgpt
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.axis_spaces import SpaceName, coarse_space, fine_space
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO
from pruning.planning.space import Choice, Space
from values.surrogate import retentions

SEARCH, TREE = "mcts", "mcts-tree"
MILP, MILP_ROOTS, MILP_COMPLETE = "milp", "milp-roots", "milp-complete"
EVOLUTION, SHORTGPT, UNIFORM = "evolution", "shortgpt", "uniform"
TREE_SIMULATIONS = 8
TARGETS_OF_A_SCAN = len(SPARSITIES) + len(LATENCIES)


@dataclass(frozen=True)
class Found:
    """What `method` keeps at `target`, and how many configurations were scored for it.

    `scored` are those of its own, in their order; empty for methods without a search.
    """

    method: str
    target: Target
    architecture: Architecture
    evaluations: float
    scored: Mapping[Architecture, Metrics] = field(default_factory=dict, repr=False)


class AxisSearch:
    """The methods in one space.

    Args:
        model: what is cut and scored.
        name: of the space.
        limits: of targets.
        evaluations: configurations a target, the scan's share included.
        seed: of all that is random.
    """

    def __init__(
        self, model: MeasuredModel, name: SpaceName, limits: TargetLimits, *, evaluations: int, seed: int
    ) -> None:
        self.name, self.space = name, self._coarse(model, name)
        self._model, self._limits, self._seed = model, limits, seed
        self._evaluations = evaluations

    @staticmethod
    def _coarse(model: MeasuredModel, name: SpaceName) -> Space:
        return coarse_space(model.anatomy, name, num_levels=DEFAULT_NUM_LEVELS, round_to=DEFAULT_ROUND_TO)

    @cached_property
    def scan_evaluations(self) -> int:
        """Of the scan that searches begin with."""
        return len(scan_choices(self.space, MAX_SCAN_EVALUATIONS))

    @property
    def own_evaluations(self) -> int:
        """What a search may score for one target itself."""
        return max(1, self._evaluations - math.ceil(self.scan_evaluations / TARGETS_OF_A_SCAN))

    @property
    def _scan_share(self) -> float:
        return self.scan_evaluations / TARGETS_OF_A_SCAN

    def scanned(self) -> dict[Architecture, Metrics]:
        """The scan's configurations, measured."""
        choices = scan_choices(self.space, MAX_SCAN_EVALUATIONS)
        architectures = [self.space.architecture(choice) for choice in choices]
        return dict(zip(architectures, self._model.measure_all(architectures), strict=True))

    def searched(self, targets: Sequence[Target], method: str = SEARCH) -> list[Found]:
        """One search of all of `targets` that can be met, which share what they learn: `SEARCH` or `TREE`."""
        sensitivity, _ = self._model.scan(self.space, most=MAX_SCAN_EVALUATIONS)
        shared = SharedKnowledge(sensitivity, [], retentions(self.space))
        settings = SearchSettings(
            budgets=(1,),  # of nothing: what a target allows is in its limits
            axes=self.name,
            num_evaluations=self.own_evaluations,
            seed=self._seed,
            num_levels=DEFAULT_NUM_LEVELS,
            round_to=DEFAULT_ROUND_TO,
            parallel_leaves=1,
            num_simulations=TREE_SIMULATIONS if method == TREE else 0,
        )
        found = []
        for index, target in enumerate(targets):
            limits = self._limits.of(self.space, target)
            if limits is not None:
                asked = SearchTarget(target.name, limits.limits[0].most, None)
                search = TargetSearch(limits, asked, self._model.score(self.space), settings, shared, index=index)
                search.run()
                found.append(self._found_by_search(method, target, search.scored, self._scan_share))
        return found

    def evolved(self, targets: Sequence[Target]) -> list[Found]:
        """An evolution of each of `targets` that can be met."""
        found = []
        for index, target in enumerate(targets):
            limits = self._limits.of(self.space, target)
            if limits is not None:
                rng = np.random.default_rng([self._seed, index])
                score = self._model.score(self.space, by_kl=True)
                scored = evolve(limits, score, self._evaluations, rng, num_offspring=1)
                found.append(self._found_by_search(EVOLUTION, target, scored, 0.0))
        return found

    def _found_by_search(self, method: str, target: Target, scored: Mapping[Choice, Metrics], before: float) -> Found:
        best = self.space.architecture(min(scored, key=lambda choice: scored[choice].score))
        architectures = {self.space.architecture(choice): metrics for choice, metrics in scored.items()}
        return Found(method, target, best, before + len(scored), architectures)

    def additive(self, targets: Sequence[Target], method: str) -> list[Found]:
        """The additive program of `MILP`, `MILP_ROOTS` or `MILP_COMPLETE` at each of `targets` that can be met."""
        most = None if method == MILP_COMPLETE else MAX_SCAN_EVALUATIONS
        loss, _ = self._model.scan(self.space, by_kl=method != MILP_ROOTS, most=most)
        share = len(scan_choices(self.space, most)) / TARGETS_OF_A_SCAN
        found = []
        for target in targets:
            limits = self._limits.of(self.space, target)
            if limits is not None:
                found.append(Found(method, target, self.space.architecture(least_sum(limits, loss)), share))
        return found

    def unsearched(self, targets: Sequence[Target]) -> list[Found]:
        """`SHORTGPT` and `UNIFORM`, which score nothing."""
        fine = fine_space(self._model.anatomy, self.name, round_to=DEFAULT_ROUND_TO)
        statistics, _ = self._model.statistics(StatisticsKind.ACTIVATIONS)
        found = []
        for target in targets:
            coarse, limits = self._limits.of(self.space, target), self._limits.of(fine, target)
            if coarse is not None:
                dropped = allocate_shortgpt(self._model.anatomy, statistics, coarse)
                found.append(Found(SHORTGPT, target, dropped.architecture, 0.0))
            if limits is not None:
                equal = fine.architecture(uniform_choice(limits))
                found.append(Found(UNIFORM, target, equal, 0.0))
        return found
