"""The memo: look up first, measure what is missing, store at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engines.memo import EvaluateInOrder, MemoisedEvaluator
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics, Widths
from storage.records import Sample
from storage.sql_repository import SqlRepository
from tests.mcts.landscapes import evaluate_by, metrics_of
from tests.mcts.registered import CALIBRATION, MODEL, open_registered


@pytest.fixture
def repository(tmp_path: Path) -> SqlRepository:
    return open_registered(tmp_path / "lop.db", [8, 8])


def sample(repository: SqlRepository, widths: Widths, kl: float) -> Sample:
    ranking = repository.get_model(MODEL).ranking_sha256
    return Sample(MODEL, ranking, CALIBRATION, widths, metrics_of(kl), 0.5, "other")


class Recorder:
    """An Evaluate that notes its calls; KL is the sum of the widths."""

    def __init__(self) -> None:
        self.calls: list[list[Widths]] = []

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        self.calls.append(list(widths))
        return [metrics_of(float(sum(w))) for w in widths]


def memoised(repository: SqlRepository, evaluate: EvaluateInOrder) -> MemoisedEvaluator:
    ranking = repository.get_model(MODEL).ranking_sha256
    ticks = iter(range(0, 1000, 6))
    return MemoisedEvaluator(
        repository, MODEL, ranking, CALIBRATION, evaluate, "mcts", clock=lambda: float(next(ticks))
    )


def test_only_what_is_missing_is_measured(repository: SqlRepository) -> None:
    repository.add_samples([sample(repository, (4, 4), 99.0)])
    recorder = Recorder()
    evaluate = memoised(repository, recorder)
    metrics = evaluate([(4, 4), (2, 8), (8, 2), (1, 1), (2, 8)])
    assert [m.kl for m in metrics] == [99.0, 10.0, 10.0, 2.0, 10.0]
    assert recorder.calls == [[(2, 8), (8, 2), (1, 1)]]
    assert evaluate([(1, 1)])[0].kl == 2.0
    assert len(recorder.calls) == 1
    stored = repository.list_samples(MODEL)
    assert [(s.widths, s.source) for s in stored] == [
        ((4, 4), "other"),
        ((2, 8), "mcts"),
        ((8, 2), "mcts"),
        ((1, 1), "mcts"),
    ]
    assert [s.seconds for s in stored[1:]] == [6.0, 6.0, 6.0]  # the clock ticks 6 s a reading


def test_a_result_is_stored_before_the_next_is_measured(repository: SqlRepository) -> None:
    def evaluate(widths: Sequence[Widths], /) -> Iterator[Metrics]:
        for position, configuration in enumerate(widths):
            assert repository.count_samples(MODEL) == position
            if position == 2:
                raise KeyboardInterrupt
            yield metrics_of(float(sum(configuration)))

    with pytest.raises(KeyboardInterrupt):
        memoised(repository, evaluate)([(4, 4), (2, 8), (8, 2)])
    assert [s.widths for s in repository.list_samples(MODEL)] == [(4, 4), (2, 8)]


def test_the_first_stored_sample_wins(repository: SqlRepository) -> None:
    class Raced(Recorder):
        def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
            repository.add_samples([sample(repository, w, 7.0) for w in widths])
            return super().__call__(widths)

    evaluate = memoised(repository, Raced())
    assert evaluate([(4, 4)])[0].kl == 7.0
    assert repository.count_samples(MODEL) == 1


def test_agreement_must_be_finite_where_it_was_measured(repository: SqlRepository) -> None:
    def evaluate(widths: Sequence[Widths], /) -> list[Metrics]:
        shares: dict[Widths, float | None] = {(4, 4): None, (2, 8): 0.75, (8, 2): float("nan")}
        return [replace(metrics_of(0.5), agreement=shares[w]) for w in widths]

    measured = memoised(repository, evaluate)
    assert [m.agreement for m in measured([(4, 4), (2, 8)])] == [None, 0.75]
    with pytest.raises(InputError, match=r"finite agreement.*at FFN widths \[8, 2\]"):
        measured([(8, 2)])
    # What was measured before there was agreement stays as it was, and is not measured again.
    assert [m.agreement for m in memoised(repository, Recorder())([(4, 4), (2, 8)])] == [None, 0.75]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_metrics_must_be_finite(repository: SqlRepository, broken: float) -> None:
    ranking = repository.get_model(MODEL).ranking_sha256
    evaluate = MemoisedEvaluator(repository, MODEL, ranking, CALIBRATION, evaluate_by(lambda _: broken), "mcts")
    with pytest.raises(InputError, match=r"finite kl.*at FFN widths \[4, 4\]"):
        evaluate([(4, 4)])
    assert repository.count_samples(MODEL) == 0
