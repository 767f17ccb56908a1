"""The search of one target: simulate, expand, evaluate, backward.

Evaluations are dear and the surrogate is cheap, so each evaluation is chosen among many proposals: simulations run
down the tree by PUCT and end at configurations that were not visited, swap moves and mutations lead there from the
best ones known. The surrogate, fitted again to everything read so far, judges them all; the one with the highest
expected improvement is expanded and scored, and its value backed up. Deterministic: the next configuration is a
function of the settings, the seed and the metrics read so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mcts.moves import is_tight, swap_moves
from mcts.prior import Guide, TablePrior, mix, normalise
from mcts.result import TargetResult
from mcts.selection import select_action
from mcts.settings import SearchSettings, SearchTarget
from mcts.tree import Edge, Node, Tree
from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.allocators.evolution import mutate
from pruning.allocators.uniform import uniform_configuration
from pruning.anatomy.architecture import Sublayer
from pruning.arrays import FloatArray
from pruning.measuring.metrics import EvaluateWidths, Metrics
from pruning.planning.levels import Configuration, LevelGrid
from storage.records import Sample
from values.surrogate import ROUGHNESSES, Kernel, ScoredConfiguration, Surrogate, expected_improvement, fit_surrogate

KL_FLOOR = 1e-9
"""KL below this fraction of the largest sensitivity counts as 0: rounding noise, and log KL must exist."""

MAX_MOVES = 4096
"""Swap moves that are proposed, those that the additive table likes best: deep models have many more."""

MAX_JUDGED = 512
"""Proposals whose expected improvement is worked out, those of least expected KL: it costs more than the mean alone."""


@dataclass(frozen=True)
class SharedKnowledge:
    """What the targets of one search share: the one-layer scan [L, K], and every sample in the order it was read."""

    sensitivity: FloatArray
    samples: list[ScoredConfiguration]

    @property
    def kl_floor(self) -> float:
        """The least KL that is told apart from 0; positive."""
        return max(KL_FLOOR * float(self.sensitivity.max()), 1e-300)

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """Of the surrogates of all targets, to be taken in turn."""
        return tuple(Kernel(self.sensitivity, roughness) for roughness in ROUGHNESSES)


def known_samples(grid: LevelGrid, samples: Sequence[Sample]) -> list[ScoredConfiguration]:
    """What earlier searches found on `grid`, as if every cost that is a whole number of level steps were a target."""
    scored = []
    for sample in samples:
        configuration = grid.configuration_of(
            list(sample.architecture.units(Sublayer.FFN, [row[-1] for row in grid.widths]))
        )
        if configuration is not None and sum(k < grid.num_levels for k in configuration) > 1:
            target = -1 - grid.cost(configuration) // grid.largest_step  # below 0: none of this search's
            scored.append(ScoredConfiguration(target, configuration, float(np.log(max(sample.metrics.kl, 1e-12)))))
    return scored


class TargetSearch:
    """A search for the best configuration under one budget.

    Args:
        grid: what levels keep and cost.
        target: the budget; `index` numbers it among the search's targets.
        evaluate: scores FFN widths.
        settings: see SearchSettings.
        shared: the scan and the samples so far; this search appends its own.
        guide: its prior is mixed with the surrogate's if given, and what it proposes is scored first.
        on_evaluation: called after each evaluation with their number and the metrics of least KL so far.
    """

    def __init__(
        self,
        grid: LevelGrid,
        target: SearchTarget,
        evaluate: EvaluateWidths,
        settings: SearchSettings,
        shared: SharedKnowledge,
        *,
        index: int = 0,
        guide: Guide | None = None,
        on_evaluation: Callable[[int, Metrics], None] | None = None,
    ) -> None:
        self.grid = grid
        self.target = target
        self.settings = settings
        self.tree = Tree(grid, target.budget)
        self.scored: dict[Configuration, Metrics] = {}
        self._evaluate = evaluate
        self._shared = shared
        self._index = index
        self._guide = guide
        self._guided: dict[Configuration, FloatArray] = {}
        self._on_evaluation = on_evaluation
        self._rng = np.random.default_rng([settings.seed, index])
        self._requested: set[Configuration] = set()
        self._believed: dict[Configuration, float] = {}
        self._version = 0
        self._surrogate: Surrogate
        self._table: FloatArray
        self._prior: TablePrior
        self._best: tuple[float, Configuration] | None = None

    def run(self) -> TargetResult:
        """Search until `num_evaluations` configurations are scored or none is left."""
        self.evaluate([self.expand(self.tree.path(c)) for c in self.starting_configurations()])
        while not self.is_finished:
            leaves: list[list[Edge]] = []
            while len(leaves) < self.settings.parallel_leaves and not self.is_finished:
                self.refit()
                leaves.append(self.expand(self.simulate()))
            self.evaluate(leaves)
        return self.result()

    @property
    def is_finished(self) -> bool:
        return len(self._requested) >= self.settings.num_evaluations or self.tree.is_complete

    def simulate(self) -> list[Edge]:
        """The path [L] of the configuration to score next: of all proposals, the most promising one."""
        parents = self._parents()
        tree = self._descend(self.settings.num_simulations)
        best, promise = self._most_promising(
            np.concatenate([tree, self._moves(parents), self._mutations(parents, self.settings.num_mutations)])
        )
        # Several moves in a row, as long as each promises more than the one before.
        for _ in range(self.settings.max_moves - 1):
            further = self._moves([best])
            if not len(further):
                break
            candidate, promised = self._most_promising(further)
            if promised <= promise:
                break
            best, promise = candidate, promised
        self._believed[best] = self._surrogate.reference + float(self._surrogate.means(np.array([best]))[0])
        return self.tree.path(best)

    def expand(self, path: list[Edge]) -> list[Edge]:
        """Make `path` part of the tree and count its visit; its value follows in `backward`."""
        self.tree.expand(path)
        self._requested.add(_configuration_of(path))
        return path

    def evaluate(self, leaves: Sequence[list[Edge]]) -> None:
        """Score the configurations at the end of the paths, and back each value up."""
        configurations = [_configuration_of(path) for path in leaves]
        metrics = self._evaluate([tuple(self.grid.widths_of(c)) for c in configurations])
        for path, configuration, measured in zip(leaves, configurations, metrics, strict=True):
            self.backward(path, configuration, measured)

    def backward(self, path: list[Edge], configuration: Configuration, metrics: Metrics) -> None:
        """Book a scored configuration: in the tree, among the samples, on the curve."""
        kl = max(metrics.kl, self._shared.kl_floor)
        self.tree.backward(path, 1.0 / kl)
        self._shared.samples.append(ScoredConfiguration(self._index, configuration, float(np.log(kl))))
        self.scored[configuration] = metrics
        if self._best is None or kl < self._best[0]:
            self._best = (kl, configuration)
        if self._on_evaluation is not None:
            self._on_evaluation(len(self.scored), self.scored[self._best[1]])

    def starting_configurations(self) -> list[Configuration]:
        """What is known before: the guide's proposal, the optimum if layers did not interact, equal retention."""
        budget, sensitivity = self.target.budget, self._shared.sensitivity
        additive, _ = additive_dp(self.grid, sensitivity, budget)
        starts = [fill_up(self.grid, additive, budget, sensitivity), uniform_configuration(self.grid, budget)]
        if self._shared.samples:
            learnt = fit_surrogate(self._shared.kernels[0], self._shared.samples, target=self._index).table(starts[0])
            starts.append(fill_up(self.grid, additive_dp(self.grid, learnt, budget)[0], budget, learnt))
        if self._guide is not None:
            starts.insert(0, fill_up(self.grid, self._guide.propose(budget), budget, sensitivity))
        tight = [c for c in dict.fromkeys(starts) if is_tight(self.grid, c, budget)]
        return tight[: self.settings.num_evaluations]

    def refit(self) -> None:
        """Fit the surrogate to everything read, and make its table the prior.

        A configuration that is still being scored counts as what the surrogate that chose it expected ("kriging
        believer", Ginsbourger et al. 2010), so that the next one is chosen somewhere else.
        """
        samples = self._shared.samples + [
            ScoredConfiguration(self._index, configuration, believed)
            for configuration, believed in self._believed.items()
            if configuration not in self.scored
        ]
        kernel = self._shared.kernels[len(self._requested) % len(self._shared.kernels)]
        self._surrogate = fit_surrogate(kernel, samples, target=self._index)
        self._version += 1
        self._table = self._surrogate.table(self.incumbent)
        self._prior = TablePrior(self.grid, self.target.budget, self._table, temperature=self.settings.temperature)

    @property
    def incumbent(self) -> Configuration:
        """The best configuration so far."""
        assert self._best is not None
        return self._best[1]

    @property
    def _best_kl(self) -> float:
        assert self._best is not None
        return self._best[0]

    def result(self) -> TargetResult:
        return TargetResult.of(self.target, self.grid, self.scored)

    def _descend(self, num_simulations: int) -> NDArray[np.int64]:
        """Unvisited configurations [<= num_simulations, L] at the end of simulations that follow the PUCT score.

        Each counts as a visit until the last one is done, so that they part (virtual loss).
        """
        paths = []
        for _ in range(num_simulations):
            node = self.tree.root
            path: list[Edge] = []
            while len(path) < self.grid.num_layers:
                self._renew_prior(node)
                index = select_action(node, self._best_kl, self.settings.c_puct)
                path.append(Edge(node, index))
                if len(path) < self.grid.num_layers:
                    node = self.tree.child(node, node.actions[index])
            self.tree.count_visit(path, 1)
            paths.append(path)
        for path in paths:
            self.tree.count_visit(path, -1)
        return _unique([_configuration_of(path) for path in paths], self.grid.num_layers)

    def _renew_prior(self, node: Node) -> None:
        """Bring the prior of a node that is being passed up to date with the last fit."""
        if node.prior_version == self._version:
            return
        indices = np.asarray(node.actions) - 1
        weights = self._prior(node.levels, node.remaining)[indices]
        if self._guide is None:
            node.prior = normalise(weights)
        else:
            if node.levels not in self._guided:
                self._guided[node.levels] = self._guide.prior(node.levels, node.remaining)[indices]
            node.prior = mix(weights, self._guided[node.levels], self.settings.prior_share)
        node.prior_version = self._version

    def _parents(self) -> list[Configuration]:
        """The best configurations so far, whose neighbours are proposed."""
        return sorted(self.scored, key=lambda c: self.scored[c].kl)[: self.settings.num_parents]

    def _moves(self, parents: Sequence[Configuration]) -> NDArray[np.int64]:
        """Swap moves [n, L] at `parents` that were not visited."""
        moves = np.concatenate([swap_moves(self.grid, parent, self.target.budget) for parent in parents])
        most = MAX_MOVES + len(self._requested)  # so many are left over if all visited ones are among them
        if len(moves) > most:
            changes = self._table[np.arange(self.grid.num_layers), moves - 1].sum(axis=1)
            moves = moves[np.sort(np.argsort(changes, kind="stable")[:most])]
        found = [tuple(row) for row in moves.tolist()]
        return _unique([c for c in found if c not in self._requested], self.grid.num_layers)

    def _mutations(self, parents: Sequence[Configuration], wanted: int) -> NDArray[np.int64]:
        """Random children [<= wanted, L] of `parents` in turn that were not visited."""
        children = [mutate(self.grid, parents[i % len(parents)], self.target.budget, self._rng) for i in range(wanted)]
        return _unique([c for c in children if c not in self._requested], self.grid.num_layers)

    def _most_promising(self, proposals: NDArray[np.int64]) -> tuple[Configuration, float]:
        """The proposal [n, L] of highest expected improvement, and how much that is; of equal ones, the first."""
        if len(proposals) > MAX_JUDGED:
            order = np.argsort(self._surrogate.means(proposals), kind="stable")
            proposals = proposals[np.sort(order[:MAX_JUDGED])]
        promise = expected_improvement(self._surrogate.predict(proposals))
        best = int(np.argmax(promise))
        return tuple(proposals[best].tolist()), float(promise[best])


def _configuration_of(path: list[Edge]) -> Configuration:
    return tuple(edge.node.actions[edge.index] for edge in path)


def _unique(configurations: list[Configuration], num_layers: int) -> NDArray[np.int64]:
    """[n, L], each once, in the order of their first appearance."""
    different = list(dict.fromkeys(configurations))
    return np.array(different, dtype=np.int64).reshape(len(different), num_layers)
