"""The search of one target: simulate, expand, evaluate, backward.

Evaluations are dear and the surrogate is cheap, so each evaluation is chosen among many proposals: swap moves and
mutations lead to choices that were not visited from the best ones known; if the settings ask for simulations, they run
down the tree by PUCT and end at others. The surrogate, fitted again to everything read so far, judges them all; the one
with the highest expected improvement is expanded and scored, and its value backed up. Deterministic: the next choice is
a function of the settings, the seed and the metrics read so far.

What does the work is the additive program that it starts from, the moves, and the surrogate. Simulations are not run by
default: as proposals they are as good as moves, and add nothing to them (docs/search.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mcts.bit_starts import bit_starts
from mcts.moves import swap_moves
from mcts.prior import Guide, TablePrior, mix, normalise
from mcts.result import TargetResult
from mcts.selection import select_action
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from mcts.tree import Edge, Node, Tree
from pruning.allocators.additive_dp import cost_to_go
from pruning.allocators.evolution import Score, mutate
from pruning.allocators.uniform import uniform_choice
from pruning.arrays import FloatArray, IntArray
from pruning.measuring.metrics import Metrics
from pruning.planning.limits import Limits
from pruning.planning.prices import Price
from pruning.planning.space import Choice, Space
from storage.records import Sample
from values.kl_floor import RELATIVE_KL_FLOOR, log_kl, relative_floor
from values.surrogate import ROUGHNESSES, Kernel, ScoredChoice, Surrogate, expected_improvement, fit_surrogate

MAX_MOVES = 4096
"""Swap moves that are proposed, those that the additive table likes best: deep models have many more."""

MAX_JUDGED = 512
"""Proposals whose expected improvement is worked out, those of least expected KL: it costs more than the mean alone."""


@dataclass(frozen=True)
class SharedKnowledge:
    """What the targets of one search share.

    Attributes:
        sensitivity: [N, K] the one-decision scan; 0 where a decision has no such option.
        samples: every sample in the order it was read.
        retention: [N, K] of the space, as `values.surrogate.retentions`.
    """

    sensitivity: FloatArray
    samples: list[ScoredChoice]
    retention: FloatArray | None = None

    @property
    def floor(self) -> float:
        """The least score that is told apart from 0; positive."""
        return relative_floor(RELATIVE_KL_FLOOR, self.sensitivity)

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """Of the surrogates of all targets, to be taken in turn."""
        return tuple(Kernel(self.sensitivity, roughness, self.retention) for roughness in ROUGHNESSES)


def known_samples(price: Price, space: Space, samples: Sequence[Sample]) -> list[ScoredChoice]:
    """What earlier searches found in `space`, as if every whole number of its largest steps were a target; `price` is
    of what targets limit."""
    largest_step = max(int(np.diff(row).max()) for row in space.tables(price.of))
    scored = []
    for sample in samples:
        choice = space.choice_of(sample.architecture)
        if choice is not None and sum(k < last for k, last in zip(choice, space.top, strict=True)) > 1:
            target = -1 - price.cost(sample.architecture) // largest_step  # below 0: none of this search's
            scored.append(ScoredChoice(target, choice, log_kl(sample.metrics.score)))
    return scored


class TargetSearch:
    """A search for the best choice under one budget.

    Args:
        limits: of the target, over the space that is searched.
        target: what it is called; `index` numbers it among the search's targets.
        score: scores choices.
        settings: see SearchSettings.
        shared: the scan and the samples so far; this search appends its own.
        guide: what it proposes is scored first; in simulations, its prior is mixed with the surrogate's.
        known: choices that were scored for this target before; they count among its evaluations.
        on_evaluation: called after each evaluation with their number and the metrics of the least score so far.
    """

    def __init__(
        self,
        limits: Limits,
        target: SearchTarget,
        score: Score,
        settings: SearchSettings,
        shared: SharedKnowledge,
        *,
        index: int = 0,
        guide: Guide | None = None,
        known: Mapping[Choice, Metrics] | None = None,
        on_evaluation: Callable[[int, Metrics], None] | None = None,
    ) -> None:
        self.limits = limits
        self.target = target
        self.settings = settings
        self.tree = Tree(limits)
        self.scored: dict[Choice, Metrics] = {}
        self._score = score
        self._shared = shared
        self._index = index
        self._guide = guide
        self._guided: dict[Choice, FloatArray] = {}
        self._on_evaluation = on_evaluation
        self._rng = np.random.default_rng([settings.seed, index])
        self._requested: set[Choice] = set()
        self._believed: dict[Choice, float] = {}
        self._version = 0
        self._surrogate: Surrogate
        self._table: FloatArray
        self._best: tuple[float, Choice] | None = None
        for choice, metrics in (known or {}).items():
            self.backward(self.expand(choice), metrics)

    def run(self) -> TargetResult:
        """Search until `num_evaluations` choices are scored or none is left."""
        self.evaluate([self.expand(choice) for choice in self.starting_choices()])
        while not self.is_finished:
            leaves: list[Choice] = []
            while len(leaves) < self.settings.parallel_leaves and not self.is_finished:
                self.refit()
                leaves.append(self.expand(self.simulate()))
            self.evaluate(leaves)
        return self.result()

    @property
    def is_finished(self) -> bool:
        return len(self._requested) >= self.settings.num_evaluations or self.tree.is_complete

    def simulate(self) -> Choice:
        """The choice to score next: of all proposals, the most promising one."""
        parents = self._parents()
        tree = self._descend(self.settings.num_simulations)
        proposals = np.concatenate([tree, self._moves(parents), self._mutations(parents, self.settings.num_mutations)])
        if not len(proposals):  # all neighbours were visited, and no simulation was asked for
            proposals = self._descend(1)
        best, promise = self._most_promising(proposals)
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
        return best

    def expand(self, choice: Choice) -> Choice:
        """Make `choice` part of the tree and count its visit; its value follows in `backward`."""
        self.tree.expand(self.tree.path(choice))
        self._requested.add(choice)
        return choice

    def evaluate(self, choices: Sequence[Choice]) -> None:
        """Score the choices, and back each value up."""
        for choice, measured in zip(choices, self._score(choices), strict=True):
            self.backward(choice, measured)
            if self._on_evaluation is not None:
                self._on_evaluation(len(self.scored), self.scored[self.incumbent])

    def backward(self, choice: Choice, metrics: Metrics) -> None:
        """Book a scored choice: in the tree, among the samples, on the curve."""
        score = max(metrics.score, self._shared.floor)
        self.tree.backward(self.tree.path(choice), 1.0 / score)
        self._shared.samples.append(ScoredChoice(self._index, choice, float(np.log(score))))
        self.scored[choice] = metrics
        if self._best is None or score < self._best[0]:
            self._best = (score, choice)

    def starting_choices(self) -> list[Choice]:
        """What to begin with that was not scored: the guide's proposal, the optimum if layers did not interact, the
        same bits everywhere where they may change, equal retention."""
        limits, sensitivity = self.limits, self._shared.sensitivity
        starts = [self._additive_optimum(sensitivity), uniform_choice(limits)]
        if limits.space.has_bits:
            starts[1:1] = [np.array(choice) for choice in bit_starts(limits, sensitivity)]
        if self._shared.samples:
            surrogate = fit_surrogate(self._shared.kernels[0], self._shared.samples, target=self._index)
            starts.append(self._additive_optimum(surrogate.table(tuple(starts[0].tolist()))))
        if self._guide is not None:
            starts.insert(0, limits.fit(self._guide.propose(self._spare), -sensitivity))
        new = dict.fromkeys(choice for start in starts if (choice := tuple(start.tolist())) not in self._requested)
        return list(new)[: self.settings.num_evaluations - len(self._requested)]

    def _additive_optimum(self, loss: FloatArray) -> IntArray:
        """[N] the choice of least summed `loss` [N, K], filled up."""
        best = cost_to_go(self.limits.table, loss, self._spare).best_choice(self._spare)
        return self.limits.fit(best, -loss)

    @property
    def _spare(self) -> int:
        """Parameters that all decisions may cost above their cheapest options: a search has one limit."""
        return int(self.limits.spare.item())

    def refit(self) -> None:
        """Fit the surrogate to everything read.

        A choice that is still being scored counts as what the surrogate that chose it expected ("kriging
        believer", Ginsbourger et al. 2010), so that the next one is chosen somewhere else.
        """
        samples = self._shared.samples + [
            ScoredChoice(self._index, choice, believed)
            for choice, believed in self._believed.items()
            if choice not in self.scored
        ]
        kernel = self._shared.kernels[len(self._requested) % len(self._shared.kernels)]
        self._surrogate = fit_surrogate(kernel, samples, target=self._index)
        self._version += 1
        self._table = self._surrogate.table(self.incumbent)

    @property
    def incumbent(self) -> Choice:
        """The best choice so far."""
        assert self._best is not None
        return self._best[1]

    @property
    def _best_score(self) -> float:
        assert self._best is not None
        return self._best[0]

    def result(self) -> TargetResult:
        return TargetResult.of(self.target, self.limits.space, self.scored)

    def _descend(self, num_simulations: int) -> IntArray:
        """Unvisited choices [<= num_simulations, N] at the end of simulations that follow the PUCT score.

        Each counts as a visit until the last one is done, so that they part (virtual loss).
        """
        if num_simulations == 0:
            return _unique([], self.limits.space.num_decisions)
        prior = TablePrior(self.limits.table, self._table, self._spare, temperature=self.settings.temperature)
        paths = []
        for _ in range(num_simulations):
            node = self.tree.root
            path: list[Edge] = []
            while len(path) < self.limits.space.num_decisions:
                self._renew_prior(node, prior)
                index = select_action(node, self._best_score, self.settings.c_puct)
                path.append(Edge(node, index))
                if len(path) < self.limits.space.num_decisions:
                    node = self.tree.child(node, node.actions[index])
            self.tree.count_visit(path, 1)
            paths.append(path)
        for path in paths:
            self.tree.count_visit(path, -1)
        return _unique([_choice_of(path) for path in paths], self.limits.space.num_decisions)

    def _renew_prior(self, node: Node, prior: TablePrior) -> None:
        """Bring the prior of a node that is being passed up to date with the last fit, of which `prior` is."""
        if node.prior_version == self._version:
            return
        slack = int(node.slack[0])
        weights = prior(node.prefix, slack)[node.actions]
        if self._guide is None:
            node.prior = normalise(weights)
        else:
            if node.prefix not in self._guided:
                self._guided[node.prefix] = self._guide.prior(node.prefix, slack)[node.actions]
            node.prior = mix(weights, self._guided[node.prefix], self.settings.prior_share)
        node.prior_version = self._version

    def _parents(self) -> list[Choice]:
        """The best choices so far, whose neighbours are proposed."""
        return sorted(self.scored, key=lambda c: self.scored[c].score)[: self.settings.num_parents]

    def _moves(self, parents: Sequence[Choice]) -> IntArray:
        """Swap moves [n, N] at `parents` that were not visited."""
        if not parents:
            return _unique([], self.limits.space.num_decisions)
        moves = np.concatenate([swap_moves(self.limits, parent) for parent in parents])
        most = MAX_MOVES + len(self._requested)  # so many are left over if all visited ones are among them
        if len(moves) > most:
            changes = self._table[np.arange(self.limits.space.num_decisions), moves].sum(axis=1)
            moves = moves[np.sort(np.argsort(changes, kind="stable")[:most])]
        found = [tuple(row) for row in moves.tolist()]
        return _unique([c for c in found if c not in self._requested], self.limits.space.num_decisions)

    def _mutations(self, parents: Sequence[Choice], wanted: int) -> IntArray:
        """Random children [<= wanted, N] of `parents` in turn that were not visited."""
        children = [mutate(self.limits, parents[i % len(parents)], self._rng) for i in range(wanted if parents else 0)]
        return _unique([c for c in children if c not in self._requested], self.limits.space.num_decisions)

    def _most_promising(self, proposals: IntArray) -> tuple[Choice, float]:
        """The proposal [n, N] of highest expected improvement, and how much that is; of equal ones, the first."""
        if len(proposals) > MAX_JUDGED:
            order = np.argsort(self._surrogate.means(proposals), kind="stable")
            proposals = proposals[np.sort(order[:MAX_JUDGED])]
        promise = expected_improvement(self._surrogate.predict(proposals))
        best = int(np.argmax(promise))
        return tuple(proposals[best].tolist()), float(promise[best])


def _choice_of(path: list[Edge]) -> Choice:
    return tuple(edge.node.actions[edge.index] for edge in path)


def _unique(choices: list[Choice], num_decisions: int) -> IntArray:
    """[n, N], each once, in the order of their first appearance."""
    different = list(dict.fromkeys(choices))
    return np.array(different, dtype=np.int64).reshape(len(different), num_decisions)
