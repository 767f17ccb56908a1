"""What each method finds in one space of one model, at equal scored tokens a target.

Every target may have as many configurations scored on the same conversations. What begins with the one-decision scan
pays for its share of it: a seventh, since seven targets share it. That is the same seventh where a space can reach few
of them, which is to the good of the single spaces. A scan has 150 evaluations at most.

    mcts            the product's search by its defaults, one configuration at a time
    mcts-filled     what it found, filled up in fine steps as the service fills it up for a plan of `mcts`
    mcts-tree       the same with eight simulations of the tree an evaluation
    milp, milp-roots
                    the additive program on the scan, exactly solved: of KL, and of what the search minimises
    milp-complete, milp-complete-roots
                    the same two on a scan of every option, of as many widths as its evaluations allow: all that an
                    additive method can know for what the search costs
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
from pruning.allocators.methods import Method
from pruning.allocators.shortgpt import allocate_shortgpt
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.axis_spaces import SpaceName, coarse_space, fine_space
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO
from pruning.planning.space import Choice, Space
from service.finished_searches import FoundConfiguration
from service.methods.filled import filled_up
from values.surrogate import retentions

SEARCH, FILLED, TREE = "mcts", "mcts-filled", "mcts-tree"
MILP, MILP_ROOTS = "milp", "milp-roots"
MILP_COMPLETE, MILP_COMPLETE_ROOTS = "milp-complete", "milp-complete-roots"
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
    def _coarse(model: MeasuredModel, name: SpaceName, num_levels: int = DEFAULT_NUM_LEVELS) -> Space:
        return coarse_space(model.anatomy, name, num_levels=num_levels, round_to=DEFAULT_ROUND_TO)

    @cached_property
    def complete_space(self) -> Space:
        """Of the most options of which a scan takes no more evaluations than searches of all targets have; of as many
        as theirs, if those are too many already. Where widths end at their rounding, the scan stays smaller."""
        allowed, found = self._evaluations * TARGETS_OF_A_SCAN, self.space
        narrowest = min(layer.ffn_width for layer in self._model.anatomy.layers)
        for num_levels in range(DEFAULT_NUM_LEVELS + 1, narrowest // DEFAULT_ROUND_TO + 1):
            finer = self._coarse(self._model, self.name, num_levels)
            if len(scan_choices(finer)) > allowed:
                break
            found = finer
        return found

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
        """The additive program of `MILP`, `MILP_COMPLETE` or the roots of either, at `targets` that can be met."""
        complete = method in (MILP_COMPLETE, MILP_COMPLETE_ROOTS)
        space = self.complete_space if complete else self.space
        most = self._evaluations * TARGETS_OF_A_SCAN if complete else MAX_SCAN_EVALUATIONS
        loss, _ = self._model.scan(space, by_kl=method in (MILP, MILP_COMPLETE), most=most)
        share = len(scan_choices(space, most)) / TARGETS_OF_A_SCAN
        found = []
        for target in targets:
            limits = self._limits.of(space, target)
            if limits is not None:
                found.append(Found(method, target, space.architecture(least_sum(limits, loss)), share))
        return found

    def filled(self, searched: Sequence[Found]) -> list[Found]:
        """What a search found, as a plan of it keeps it: `FILLED`, in fine steps, like the predictor's plans."""
        fine = fine_space(self._model.anatomy, self.name, round_to=DEFAULT_ROUND_TO)
        found = []
        for of in searched:
            limits = self._limits.of(fine, of.target)
            if limits is not None:
                kept = filled_up(self._configuration(of), limits).architecture
                found.append(Found(FILLED, of.target, kept, of.evaluations))
        return found

    def _configuration(self, found: Found) -> FoundConfiguration:
        """As the service reads it from a finished search; of its figures, filling up takes none."""
        return FoundConfiguration(
            search_id="benchmark",
            method=Method.MCTS,
            label=found.target.name,
            architecture=found.architecture,
            budget=0,
            parameters=0,
            level_step=0,
            metrics=found.scored[found.architecture],
            evaluations=len(found.scored),
            seed=self._seed,
            calibration_id=None,
            space=self.name,
        )

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
