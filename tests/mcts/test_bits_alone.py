"""Searches of units and bits: what bits alone can do is scored first, and only given up for what is surely better."""

from collections.abc import Sequence

import numpy as np
import pytest

from mcts.bit_starts import bit_starts
from mcts.bits_alone import BitsAlone
from mcts.result import TargetResult
from mcts.search import SharedKnowledge, TargetSearch
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from pruning.allocators.evolution import Score
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.bit_spaces import in_same_bits, with_all_units
from pruning.planning.limits import Limits
from pruning.planning.prices import decoder_bytes
from pruning.planning.space import Choice, Space
from pruning.planning.target import decoder_byte_limits
from tests.pruning.packed_models import save_wide_checkpoint
from values.surrogate import retentions

TARGET = SearchTarget("half", 1, None)


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> ModelAnatomy:
    """Four layers in bfloat16: in 4 bits, sub-layers have 28% of their bytes."""
    return read_anatomy(save_wide_checkpoint(tmp_path_factory.mktemp("wide")))


@pytest.fixture(scope="module")
def space(anatomy: ModelAnatomy) -> Space:
    return coarse_space(anatomy, SpaceName.ALL_BITS, num_levels=2)


def limits_at(anatomy: ModelAnatomy, space: Space, share: float) -> Limits:
    return decoder_byte_limits(anatomy, space, int(share * decoder_bytes(anatomy).total))


def losses(space: Space, of_units: float) -> np.ndarray:
    """[N, K] each unit that goes loses as much, of all together `of_units`; 8 bits lose .001, and 4 bits .1."""
    table = np.zeros((space.num_decisions, int(space.counts.max())))
    for row, decision in zip(table, space.decisions, strict=True):
        dense = space.dense[decision.sites[0]]
        for k, x in enumerate(decision.options[0]):
            row[k] = (1 - x.units / dense) * of_units + ({None: 0.0, 8: 0.001, 4: 0.1}[x.bits] if x.units else 0.0)
    return table


def metrics_of(kl: Sequence[float]) -> Metrics:
    """By these KL of folds of ten tokens."""
    folds = tuple(FoldMetrics(x, 0.0, 0.0, 10, 2, x**0.5) for x in kl)
    return Metrics(float(np.mean(kl)), 1.0, 0.5, 10 * len(kl), 8, 0.5, folds)


def score_by(table: np.ndarray) -> Score:
    def score(choices: Sequence[Choice]) -> list[Metrics]:
        kl = [float(table[np.arange(len(c)), c].sum()) for c in choices]
        return [metrics_of([x, 1.1 * x, 0.9 * x, x]) for x in kl]

    return score


def is_bits_alone(space: Space, choice: Choice) -> bool:
    return space.units_of(choice) == space.units_of(space.top)


def run(limits: Limits, table: np.ndarray, evaluations: int) -> tuple[TargetSearch, dict[Choice, Metrics], list[int]]:
    """The search as `run_search` does it, what it scored of bits alone first, and how it told of its progress."""
    space, score, told = limits.space, score_by(table), list[int]()
    settings = SearchSettings(budgets=(1,), axes=SpaceName.ALL_BITS, num_evaluations=evaluations, parallel_leaves=1)

    def on_evaluation(done: int, _: Metrics) -> None:
        told.append(done)

    first = BitsAlone(space, table).search(limits, TARGET, score, settings, on_evaluation=on_evaluation)
    shared = SharedKnowledge(table, [], retentions(space))
    search = TargetSearch(limits, TARGET, score, settings, shared, known=first, on_evaluation=on_evaluation)
    search.run()
    return search, first, told


@pytest.mark.parametrize("share", [0.95, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4])
def test_half_of_the_evaluations_are_of_bits_alone(anatomy: ModelAnatomy, space: Space, share: float) -> None:
    """Choices in few bits leave more over than the tree of units and bits has, and are scored none the less."""
    limits = limits_at(anatomy, space, share)
    search, first, told = run(limits, losses(space, 1.0), 20)
    assert len(first) == 10
    assert all(is_bits_alone(space, choice) for choice in first)
    assert list(search.scored)[:10] == list(first)
    assert told == list(range(1, 21))
    assert all((limits.slack(choice) >= 0).all() for choice in search.scored)
    # Units that go lose far more than bits here: bits alone are best, and among the joint ones, too.
    found = search.result()
    assert found.evaluations == 20
    assert found.metrics.score == min(metrics.score for metrics in search.scored.values())
    assert is_bits_alone(space, found.choice)


def test_units_go_where_that_is_sure_to_be_better(anatomy: ModelAnatomy, space: Space) -> None:
    limits = limits_at(anatomy, space, 0.5)
    search, first, _ = run(limits, losses(space, 0.01), 20)
    found = search.result()
    assert not is_bits_alone(space, found.choice)
    assert found.metrics.kl < min(metrics.kl for metrics in first.values())


def test_where_bits_alone_cannot_or_are_all_there_is(anatomy: ModelAnatomy, space: Space) -> None:
    """Units alone, the same bits everywhere and all else go on; a space of bits has nothing to search first."""
    small = limits_at(anatomy, space, 0.25)
    search, first, _ = run(small, losses(space, 1.0), 8)
    assert first == {}
    assert len(search.scored) == 8
    bits = coarse_space(anatomy, SpaceName.BITS)
    search, first, _ = run(limits_at(anatomy, bits, 0.5), losses(bits, 1.0), 8)
    assert first == {}
    assert len(search.scored) == 8
    # One evaluation has no half.
    assert run(limits_at(anatomy, space, 0.5), losses(space, 1.0), 1)[1] == {}


def test_what_a_search_begins_with(anatomy: ModelAnatomy, space: Space) -> None:
    found = bit_starts(limits_at(anatomy, space, 0.5), losses(space, 1.0))
    assert len(found) == 3
    for choice, bits in zip(found, (8, 4, None), strict=True):
        of_some = {x.bits for _, x in space.architecture(choice).items if x.units}
        assert of_some <= {bits, None}
        assert (bits in of_some) or bits is None
    assert len(bit_starts(limits_at(anatomy, space, 0.2), losses(space, 1.0))) == 3
    alone = coarse_space(anatomy, SpaceName.BITS)
    found = bit_starts(limits_at(anatomy, alone, 0.5), losses(alone, 1.0))
    assert [{x.bits for _, x in alone.architecture(choice).items} for choice in found] == [{4}]


def test_options_of_a_kind(space: Space) -> None:
    for decision, whole, eight, dense in zip(
        space.decisions, with_all_units(space), in_same_bits(space, 8), in_same_bits(space, None), strict=True
    ):
        options = list(decision.options[0])
        most = max(x.units for x in options)
        assert [options[k] for k in whole] == [x for x in options if x.units == most]
        assert [options[k] for k in eight] == [x for x in options if x.bits == 8 or not x.units]
        assert [options[k] for k in dense] == [x for x in options if x.bits is None]


def result_of(space: Space, scored: dict[Choice, Metrics]) -> TargetResult:
    return TargetResult.of(TARGET, space, scored)


def test_bits_alone_unless_others_are_sure_to_be_better(space: Space) -> None:
    """By 4% in each of four folds is sure; by 10% in the mean, most of it in one fold, is not, and neither is anything
    without folds."""
    eight = tuple(next(k for k, x in enumerate(d.options[0]) if x.bits == 8) for d in space.decisions)
    alone = tuple(int(kept[0]) for kept in with_all_units(space))
    assert not is_bits_alone(space, eight)
    one, other = metrics_of([1.0, 2.0, 1.0, 1.0]), metrics_of([0.96, 1.92, 0.96, 0.96])
    assert result_of(space, {alone: one, eight: other}).choice == eight
    lucky = metrics_of([1.02, 1.4, 1.03, 1.05])
    fallen_back = result_of(space, {alone: one, eight: lucky})
    assert fallen_back.choice == alone
    assert fallen_back.held_out == one.folds
    assert (fallen_back.evaluations, fallen_back.curve) == (2, (one.score, lucky.score))
    assert result_of(space, {eight: lucky}).choice == eight
    assert result_of(space, {alone: Metrics(1.0, 1, 0, 9, 9), eight: Metrics(0.1, 1, 0, 9, 9)}).choice == alone


def test_the_luckiest_of_many_is_not_sure_to_be_better(space: Space) -> None:
    """Each of four is far better on all folds but one, where it is far worse: what is chosen without a fold is the one
    that is bad on it."""
    alone = tuple(int(kept[0]) for kept in with_all_units(space))
    scored = {alone: metrics_of([1.0] * 4)}
    joint = [(0, k, *space.bottom[2:]) for k in range(4)]
    for n, choice in enumerate(joint):
        scored[choice] = metrics_of([1.6 if fold == n else 0.5 for fold in range(4)])
    assert min(scored, key=lambda c: scored[c].kl) != alone
    assert result_of(space, scored).choice == alone
