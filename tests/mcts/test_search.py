"""The search of one target: optimal where that can be enumerated, sane at every edge, the same every time."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mcts.prior import Guide
from mcts.search import MAX_MOVES, SharedKnowledge, TargetSearch, known_samples
from mcts.sensitivity import scan_sensitivity
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from pruning.allocators.additive_dp import cost_to_go
from pruning.allocators.evolution import evolve
from pruning.allocators.uniform import evenness
from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.measuring.metrics import FoldMetrics, Metrics, Widths
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.space import Choice
from storage.records import Sample
from tests.mcts.landscapes import (
    EvaluateWidths,
    Landscape,
    NetworkLandscape,
    evaluate_by,
    make_anatomy,
    make_limits,
    make_space,
    scoring,
)
from values.surrogate import Kernel, ScoredChoice, Surrogate, fit_surrogate


def make_search(
    limits: Limits,
    evaluate: EvaluateWidths,
    *,
    shared: SharedKnowledge | None = None,
    index: int = 0,
    guide: Guide | None = None,
    num_evaluations: int = 40,
    seed: int = 0,
    parallel_leaves: int = 1,
    **others: Any,
) -> TargetSearch:
    budget, score = limits.limits[0].most, scoring(limits.space, evaluate)
    settings = SearchSettings(
        budgets=(budget,), num_evaluations=num_evaluations, seed=seed, parallel_leaves=parallel_leaves, **others
    )
    shared = shared or SharedKnowledge(scan_sensitivity(limits.space, score), [])
    target = SearchTarget(f"budget {budget}", budget, None)
    return TargetSearch(limits, target, score, settings, shared, index=index, guide=guide)


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_true_optimum_of_several_targets(seed: int) -> None:
    space, targets = make_space(6, 5), (12, 15, 18, 21)  # 6 decisions of 5 options keep 30 when dense
    landscape = Landscape([5] * 6, seed)
    everything = np.array(list(itertools.product(range(1, 6), repeat=6)))
    kl = landscape.kl(everything)
    shared = SharedKnowledge(scan_sensitivity(space, scoring(space, landscape)), [])
    for index, budget in enumerate(targets):
        limits = make_limits(6, 5, budget)
        found = make_search(limits, landscape, shared=shared, index=index, num_evaluations=120, seed=seed).run()
        assert found.metrics.kl == pytest.approx(kl[everything.sum(axis=1) <= budget].min(), rel=1e-12)
        assert found.evaluations == 120
    assert len(landscape.calls) <= 0.1 * len(everything)


def test_the_score_is_what_is_minimised_and_not_kl() -> None:
    """By fold every configuration has a score of its own; where that is least, KL is not."""
    space, landscape = make_space(4, 4), Landscape([4] * 4, 0)

    def evaluate(widths: Sequence[Widths]) -> list[Metrics]:
        found = []
        for metrics, w in zip(landscape(widths), widths, strict=True):
            score = 1.0 / metrics.kl if sum(w) < 16 else 0.0  # the worse the KL, the better
            fold = FoldMetrics(metrics.kl, 0.5, 0.5, 10, 4, float(np.sqrt(score)))
            found.append(replace(metrics, folds=(fold,)))
        return found

    limits = make_limits(4, 4, 10)
    search = make_search(limits, evaluate, num_evaluations=60)
    assert search._shared.sensitivity[0, 0] == pytest.approx(1.0 / landscape.kl(np.array([[1, 4, 4, 4]]))[0])
    found = search.run()
    assert found.metrics.score == min(m.score for m in search.scored.values()) == found.curve[-1]
    assert found.metrics.kl > 3.0 * min(m.kl for m in search.scored.values())
    best = max(landscape.kl(np.array([w for w in itertools.product(range(1, 5), repeat=4) if sum(w) == 10])))
    assert found.metrics.kl == pytest.approx(best)
    evolved = evolve(limits, scoring(space, evaluate), 30, np.random.default_rng(0))
    by_kl = evolve(limits, scoring(space, landscape), 30, np.random.default_rng(0))
    assert list(evolved) != list(by_kl)


@pytest.mark.parametrize("make", [Landscape, NetworkLandscape])
@pytest.mark.parametrize("seed", [0, 1])
def test_beats_the_allocators_where_layers_interact(
    make: Callable[[Sequence[int], int], Landscape | NetworkLandscape], seed: int
) -> None:
    limits = make_limits(14, 8, 14 * 2)  # a quarter of every layer
    landscape = make([8] * 14, seed)
    space, spare = limits.space, int(limits.spare[0])
    sensitivity = scan_sensitivity(space, scoring(space, landscape))
    rivals = [
        limits.fit(space.bottom, evenness(space)),
        cost_to_go(limits.table, sensitivity, spare).best_choice(spare),
    ]
    least = min(metrics.kl for metrics in scoring(space, landscape)([tuple(rival.tolist()) for rival in rivals]))
    found = make_search(limits, landscape, num_evaluations=60).run()
    assert found.metrics.kl < 0.95 * least


def test_every_evaluation_is_a_new_feasible_configuration() -> None:
    row = tuple(range(8, 65, 8))
    prices = (3, 5, 3, 9, 3)
    costs = tuple(np.array([w * p for w in row]) for p in prices)
    limits = Limits(ffn_space([row] * 5), (Limit(LimitKind.FFN_PARAMETERS, 700, 0, costs),))
    landscape = Landscape([64] * 5, seed=0)
    search = make_search(limits, landscape, num_evaluations=80, parallel_leaves=4)
    found = search.run()
    assert len(search.scored) == found.evaluations == len(found.curve) == 80
    for choice in search.scored:
        assert 0 <= limits.slack(choice)[0] < 8 * 9
    assert all(b <= a for a, b in itertools.pairwise(found.curve))
    assert found.curve[-1] == found.metrics.kl == min(m.kl for m in search.scored.values())
    assert found.widths == limits.space.units_of(found.choice)


def test_values_in_the_tree_are_those_of_the_samples() -> None:
    search = make_search(make_limits(4, 4, 9), Landscape([4] * 4, 0))
    search.run()
    root = search.tree.root
    for index, level in enumerate(root.actions):
        below = [1.0 / m.kl for c, m in search.scored.items() if c[0] == level]
        assert root.visit_count[index] == len(below)
        assert root.value_sum[index] == pytest.approx(sum(below))
        assert root.value_max[index] == max(below, default=0.0)


def test_stops_when_every_configuration_was_scored() -> None:
    # Three layers of levels 1..3, six levels to give: 7 configurations.
    found = make_search(make_limits(3, 3, 6), Landscape([3] * 3, 0)).run()
    assert found.evaluations == 7


def test_single_feasible_configuration() -> None:
    found = make_search(make_limits(3, 4, 3), Landscape([4] * 3, 0)).run()
    assert (found.choice, found.evaluations) == ((0, 0, 0), 1)


def test_dense_costs_nothing() -> None:
    found = make_search(make_limits(3, 4, 50), Landscape([4] * 3, 0)).run()
    assert (found.choice, found.metrics.kl, found.evaluations) == ((3, 3, 3), 0.0, 1)


def test_kl_of_zero_away_from_dense() -> None:
    flat = make_search(make_limits(3, 4, 8), Landscape([4] * 3, 0, scale=0.0)).run()
    assert flat.metrics.kl == 0.0


def test_one_layer() -> None:
    found = make_search(make_limits(1, 4, 3), Landscape([4], 0)).run()
    assert (found.choice, found.evaluations) == ((2,), 1)


def test_two_levels() -> None:
    landscape = Landscape([2] * 8, 3)
    found = make_search(make_limits(8, 2, 12), landscape, num_evaluations=70).run()
    everything = np.array(list(itertools.product((1, 2), repeat=8)))
    assert found.evaluations == 70  # of 8 choose 4, all of them
    assert found.metrics.kl == pytest.approx(landscape.kl(everything[everything.sum(axis=1) == 12]).min())


def test_scaling_kl_changes_nothing() -> None:
    limits = make_limits(6, 4, 12)
    small, large = Landscape([4] * 6, 0), Landscape([4] * 6, 0, scale=2.0**20)
    assert list(make_search(limits, small).run().curve) == [
        pytest.approx(kl / 2.0**20) for kl in make_search(limits, large).run().curve
    ]
    assert small.calls == large.calls


def test_parallel_leaves_are_all_different() -> None:
    batches: list[int] = []
    limits = make_limits(6, 4, 12)
    landscape = Landscape([4] * 6, 0)

    def evaluate(widths: Sequence[Widths], /) -> list[Metrics]:
        batches.append(len(set(widths)))
        return landscape(widths)

    shared = SharedKnowledge(scan_sensitivity(limits.space, scoring(limits.space, landscape)), [])
    search = make_search(limits, evaluate, shared=shared, num_evaluations=42, parallel_leaves=8)
    assert search.run().evaluations == 42
    # Two starting choices, then full batches up to the limit.
    assert batches == [2, 8, 8, 8, 8, 8]


def test_what_is_believed_of_a_pending_leaf_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[Choice, float]] = []

    def recording(kernel: Kernel, samples: Sequence[ScoredChoice], *, target: int) -> Surrogate:
        seen.append({s.choice: s.log_kl for s in samples})
        return fit_surrogate(kernel, samples, target=target)

    monkeypatch.setattr("mcts.search.fit_surrogate", recording)
    search = make_search(make_limits(8, 6, 24), Landscape([6] * 8, 1), num_evaluations=42, parallel_leaves=8)
    search.run()
    true = {c: float(np.log(m.kl)) for c, m in search.scored.items()}
    pending = [(fit, c) for fit in seen for c in fit if fit[c] != true[c]]
    assert len(pending) > 100
    for choice in {c for _, c in pending}:
        assert len({fit[choice] for fit, c in pending if c == choice}) == 1
    # Believed where it was predicted: log KL, not something relative to the best.
    errors = [abs(fit[c] - true[c]) for fit, c in pending]
    assert np.median(errors) < 0.3


def test_the_proposals_of_a_deep_model_stay_bounded() -> None:
    search = make_search(make_limits(80, 8, 320), Landscape([8] * 80, 0), num_evaluations=6)
    assert search.run().evaluations == 6
    moves = search._moves(search._parents())
    assert MAX_MOVES <= len(moves) <= MAX_MOVES + 6
    assert search.scored.keys().isdisjoint(map(tuple, moves.tolist()))


def test_golden_start_of_a_search() -> None:
    search = make_search(make_limits(4, 4, 9), Landscape([4] * 4, 0), num_evaluations=10, seed=7)
    search.run()
    # The additive optimum, equal retention, then what the surrogate expects most of.
    assert list(search.scored) == [
        (1, 1, 2, 1),
        (2, 1, 1, 1),
        (1, 2, 1, 1),
        (1, 1, 1, 2),
        (1, 2, 2, 0),
        (0, 2, 2, 1),
        (1, 0, 3, 1),
        (2, 1, 2, 0),
        (1, 3, 0, 1),
        (1, 1, 3, 0),
    ]


class MadeUpGuide:
    """Proposes one choice, and is sure of another."""

    def __init__(self, proposed: Choice, wanted: Choice) -> None:
        self.proposed, self.wanted = proposed, wanted
        self.asked: list[tuple[Choice, int]] = []

    def prior(self, prefix: Choice, slack: int, /) -> FloatArray:
        self.asked.append((prefix, slack))
        weights = np.zeros(4)
        weights[self.wanted[len(prefix)]] = 1.0
        return weights

    def propose(self, spare: int) -> Choice:  # noqa: ARG002
        return self.proposed


def test_a_guide_is_asked_first_and_its_prior_all_the_way_down() -> None:
    proposed = (3, 0, 3, 0, 0, 0)
    guide = MadeUpGuide(proposed, (0, 3, 0, 3, 0, 0))
    search = make_search(make_limits(6, 4, 12), Landscape([4] * 6, 0), guide=guide, num_simulations=8)
    search.run()
    assert next(iter(search.scored)) == proposed
    assert guide.asked
    assert all(slack == 6 - sum(prefix) for prefix, slack in guide.asked)


def test_a_proposal_that_leaves_budget_over_is_filled_up() -> None:
    search = make_search(make_limits(6, 4, 12), Landscape([4] * 6, 0), guide=MadeUpGuide((0,) * 6, (1,) * 6))
    assert sum(search.starting_choices()[0]) == 6


def test_a_guide_that_is_broken_is_an_error() -> None:
    class Broken(MadeUpGuide):
        def prior(self, prefix: Choice, slack: int, /) -> FloatArray:  # noqa: ARG002
            return np.full(4, np.nan)

    guide = Broken((1, 2, 2), (1, 2, 2))
    with pytest.raises(InputError, match="a prior must give finite weights"):
        make_search(make_limits(3, 4, 8), Landscape([4] * 3, 0), guide=guide, num_simulations=8).run()


def test_known_samples_are_grouped_by_what_they_cost() -> None:
    anatomy, space = make_anatomy([4] * 3), make_space(3, 4)
    found = known_samples(
        ffn_parameters(anatomy),
        space,
        [
            Sample("m", "r", "c", anatomy.architecture(widths), Metrics(kl, 0.0, 0.5, 1, 1), 0.1, "mcts")
            for widths, kl in (((4, 4, 3), 0.1), ((2, 2, 4), 0.2), ((4, 2, 2), 0.3), ((1, 1, 4), 0.0))
        ],
    )
    assert [x.choice for x in found] == [(1, 1, 3), (3, 1, 1), (0, 0, 3)]  # one pruned layer is the scan's
    assert found[0].target == found[1].target != found[2].target
    assert all(x.target < 0 and np.isfinite(x.log_kl) for x in found)


def test_a_scan_that_says_nothing_is_no_problem() -> None:
    limits = make_limits(3, 4, 8)
    constant = scan_sensitivity(limits.space, scoring(limits.space, evaluate_by(lambda _: 0.0)))
    found = make_search(limits, Landscape([4] * 3, 0), shared=SharedKnowledge(constant, [])).run()
    assert found.metrics.kl > 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {"num_mutations": 0},
        {"num_simulations": 8},
        {"num_simulations": 8, "num_parents": 0, "num_mutations": 0, "max_moves": 1},
        {"num_parents": 0, "max_moves": 1},
    ],
)
def test_whatever_proposes_every_choice_is_scored(settings: dict[str, Any]) -> None:
    limits, landscape = make_limits(4, 3, 8), Landscape([3] * 4, 0)
    found = make_search(limits, landscape, num_evaluations=30, **settings).run()
    assert found.evaluations == sum(sum(c) + 4 == 8 for c in itertools.product(range(3), repeat=4))
