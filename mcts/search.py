"""The search of one target: simulate, expand, evaluate, backward.

Every configuration that is scored is a path of the tree, whichever way it was found: by following PUCT from the root,
or as a swap move at a good configuration. Every `refit_every` evaluations the surrogate table is fitted again to all
samples of the search, and with it the prior. Deterministic: the next configuration is a function of the settings, the
seed and the metrics read so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mcts.evaluator import Evaluate
from mcts.moves import is_tight, swap_moves
from mcts.prior import Prior, TablePrior, mix, normalise
from mcts.result import TargetResult
from mcts.selection import select_action
from mcts.settings import SearchSettings, SearchTarget
from mcts.surrogate import ScoredConfiguration, Surrogate, fit_surrogate
from mcts.tree import Edge, Node, Tree
from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.allocators.uniform import uniform_configuration
from pruning.arrays import FloatArray
from pruning.levels import Configuration, LevelGrid
from pruning.metrics import Metrics

KL_FLOOR = 1e-9
"""KL below this fraction of the largest sensitivity counts as 0: rounding noise, and log KL must exist."""


@dataclass(frozen=True)
class SharedKnowledge:
    """What the targets of one search share: the one-layer scan [L, K], and every sample in the order it was read."""

    sensitivity: FloatArray
    samples: list[ScoredConfiguration]

    @property
    def kl_floor(self) -> float:
        """The least KL that is told apart from 0; positive."""
        return max(KL_FLOOR * float(self.sensitivity.max()), 1e-300)


class TargetSearch:
    """A search for the best configuration under one budget.

    Args:
        grid: what levels keep and cost.
        target: the budget; `index` numbers it among the search's targets.
        evaluate: scores FFN widths.
        settings: see SearchSettings.
        shared: the scan and the samples so far; this search appends its own.
        prior: mixed with the surrogate's prior if given.
        on_evaluation: called after each evaluation with their number and the best KL so far.
    """

    def __init__(
        self,
        grid: LevelGrid,
        target: SearchTarget,
        evaluate: Evaluate,
        settings: SearchSettings,
        shared: SharedKnowledge,
        *,
        index: int = 0,
        prior: Prior | None = None,
        on_evaluation: Callable[[int, float], None] | None = None,
    ) -> None:
        self.grid = grid
        self.target = target
        self.settings = settings
        self.tree = Tree(grid, target.budget)
        self.scored: dict[Configuration, Metrics] = {}
        self.curve: list[float] = []
        self._evaluate = evaluate
        self._shared = shared
        self._index = index
        self._given_prior = prior
        self._given_cache: dict[Configuration, FloatArray] = {}
        self._on_evaluation = on_evaluation
        self._rng = np.random.default_rng([settings.seed, index])
        self._requested: set[Configuration] = set()
        self._moves_due = 0.0
        self._fitted_at = -1
        self._version = 0
        self._surrogate: Surrogate
        self._prior: TablePrior
        self._best: tuple[float, Configuration] | None = None

    def run(self) -> TargetResult:
        """Search until `num_evaluations` configurations are scored or none is left."""
        self.evaluate([self.expand(self.tree.path(c)) for c in self.starting_configurations()])
        while not self.is_finished:
            self.refit()
            leaves: list[list[Edge]] = []
            while len(leaves) < self.settings.parallel_leaves and not self.is_finished:
                leaves.append(self.expand(self.simulate()))
            self.evaluate(leaves)
        return self.result()

    @property
    def is_finished(self) -> bool:
        return len(self._requested) >= self.settings.num_evaluations or self.tree.is_complete

    def simulate(self) -> list[Edge]:
        """The path [L] of a configuration that was not visited yet: a swap move, or down the tree by PUCT."""
        self._moves_due += self.settings.move_share
        if self._moves_due >= 1.0:
            self._moves_due -= 1.0
            moved = self._best_move()
            if moved is not None:
                return self.tree.path(moved)
        return self._descend()

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
        self.curve.append(self.scored[self._best[1]].kl)
        if self._on_evaluation is not None:
            self._on_evaluation(len(self.curve), self.curve[-1])

    def starting_configurations(self) -> list[Configuration]:
        """What is known before the search: the optimum if layers did not interact, equal retention, the prior's own."""
        budget, sensitivity = self.target.budget, self._shared.sensitivity
        additive, _ = additive_dp(self.grid, sensitivity, budget)
        starts = [fill_up(self.grid, additive, budget, sensitivity), uniform_configuration(self.grid, budget)]
        if self._shared.samples:
            learnt = fit_surrogate(sensitivity, self._shared.samples, target=self._index, incumbent=starts[0])
            starts.append(fill_up(self.grid, additive_dp(self.grid, learnt.table, budget)[0], budget, learnt.table))
        if self._given_prior is not None:
            starts.append(self._follow(self._given_prior))
        tight = [c for c in dict.fromkeys(starts) if is_tight(self.grid, c, budget)]
        return tight[: self.settings.num_evaluations]

    def refit(self) -> None:
        """Fit the surrogate again if enough was learnt since, and make its table the prior."""
        if self._fitted_at >= 0 and len(self.curve) - self._fitted_at < self.settings.refit_every:
            return
        self._fitted_at = len(self.curve)
        self._version += 1
        incumbent = self.incumbent
        self._surrogate = fit_surrogate(
            self._shared.sensitivity, self._shared.samples, target=self._index, incumbent=incumbent
        )
        self._prior = TablePrior(
            self.grid,
            self.target.budget,
            self._surrogate.table,
            incumbent=incumbent,
            trust_radius=self.settings.trust_radius,
            temperature=self.settings.temperature,
        )

    @property
    def incumbent(self) -> Configuration:
        """The best configuration so far."""
        assert self._best is not None
        return self._best[1]

    def result(self) -> TargetResult:
        best = self.incumbent
        return TargetResult(
            label=self.target.label,
            sparsity=self.target.sparsity,
            budget=self.target.budget,
            configuration=best,
            widths=tuple(self.grid.widths_of(best)),
            metrics=self.scored[best],
            evaluations=len(self.curve),
            curve=tuple(self.curve),
        )

    def _descend(self) -> list[Edge]:
        """Follow the highest PUCT score from the root to a complete configuration that was not visited."""
        assert self._best is not None
        node = self.tree.root
        path: list[Edge] = []
        while True:
            self._renew_prior(node)
            index = select_action(node, self._best[0], self.settings.c_puct)
            path.append(Edge(node, index))
            if len(path) == self.grid.num_layers:
                return path
            node = self.tree.child(node, node.actions[index])

    def _renew_prior(self, node: Node) -> None:
        """Bring the prior of a node that is being passed up to date with the last fit."""
        if node.prior_version == self._version:
            return
        indices = np.asarray(node.actions) - 1
        weights = self._prior(node.levels, node.remaining)[indices]
        if self._given_prior is None:
            node.prior = normalise(weights)
        else:
            if node.levels not in self._given_cache:
                self._given_cache[node.levels] = self._given_prior(node.levels, node.remaining)[indices]
            node.prior = mix(weights, self._given_cache[node.levels], self.settings.prior_share)
        node.prior_version = self._version

    def _best_move(self) -> Configuration | None:
        """The unvisited swap move at the incumbent that a table drawn from the surrogate's posterior likes best."""
        table = self._surrogate.sample_table(self._rng)
        moves = swap_moves(self.grid, self.incumbent, self.target.budget)
        predicted = table[np.arange(self.grid.num_layers), moves - 1].sum(axis=1)
        for index in np.argsort(predicted, kind="stable"):
            configuration = tuple(int(k) for k in moves[index])
            if configuration not in self._requested:
                return configuration
        return None

    def _follow(self, prior: Prior) -> Configuration:
        """The configuration that takes a prior's likeliest feasible level in every layer."""
        node = self.tree.root
        for _ in range(self.grid.num_layers - 1):
            node = self.tree.child(node, _likeliest(prior, node))
        return (*node.levels, _likeliest(prior, node))


def _likeliest(prior: Prior, node: Node) -> int:
    weights = normalise(prior(node.levels, node.remaining)[np.asarray(node.actions) - 1])
    return node.actions[int(np.argmax(weights))]


def _configuration_of(path: list[Edge]) -> Configuration:
    return tuple(edge.node.actions[edge.index] for edge in path)
