"""The memo: look up first, measure what is missing, store at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engines.local import LocalEngine
from engines.memo import EvaluateInOrder, Measured, MemoisedEvaluator
from pruning.anatomy.architecture import Architecture
from pruning.errors import InputError
from pruning.measuring.metrics import FoldMetrics, Metrics
from storage.documents import canonical_protocol
from storage.records import Sample
from storage.sql_repository import SqlRepository
from tests.mcts.landscapes import evaluate_by, make_anatomy, metrics_of
from tests.mcts.registered import CALIBRATION, MODEL, engine_of, open_registered

ANATOMY = make_anatomy([8, 8])


@pytest.fixture
def repository(tmp_path: Path) -> SqlRepository:
    return open_registered(tmp_path / "lop.db", [8, 8])


def cut(*widths: tuple[int, int]) -> list[Architecture]:
    return [ANATOMY.architecture(w) for w in widths]


def sample(repository: SqlRepository, architecture: Architecture, kl: float) -> Sample:
    ranking = repository.get_model(MODEL).ranking_sha256
    return Sample(MODEL, ranking, CALIBRATION, architecture, metrics_of(kl), 0.5, "other")


class Recorder:
    """An engine that notes its calls; KL is the sum of the widths, and so are the seconds."""

    def __init__(self) -> None:
        self.calls: list[list[Architecture]] = []

    def __call__(self, architectures: Sequence[Architecture], /) -> list[Measured]:
        self.calls.append(list(architectures))
        sums = [float(sum(ANATOMY.ffn_widths(architecture))) for architecture in architectures]
        return [Measured(metrics_of(total), total) for total in sums]


def memoised(repository: SqlRepository, evaluate: EvaluateInOrder) -> MemoisedEvaluator:
    ranking = repository.get_model(MODEL).ranking_sha256
    return MemoisedEvaluator(repository, MODEL, ranking, CALIBRATION, evaluate, "mcts")


def test_only_what_is_missing_is_measured(repository: SqlRepository) -> None:
    known, *missing = cut((4, 4), (2, 8), (8, 2), (1, 1))
    repository.add_samples([sample(repository, known, 99.0)])
    recorder = Recorder()
    evaluate = memoised(repository, recorder)
    metrics = evaluate([known, *missing, missing[0]])
    assert [m.kl for m in metrics] == [99.0, 10.0, 10.0, 2.0, 10.0]
    assert recorder.calls == [missing]
    assert evaluate(missing[2:])[0].kl == 2.0
    assert len(recorder.calls) == 1
    stored = repository.list_samples(MODEL)
    assert [s.architecture for s in stored] == [known, *missing]
    assert [s.source for s in stored] == ["other", "mcts", "mcts", "mcts"]


def test_what_is_measured_after_another_protocol_is_another_sample(repository: SqlRepository) -> None:
    (known,) = cut((4, 4))
    repository.add_samples([sample(repository, known, 99.0)])
    protocol = canonical_protocol([{"step": "bias"}])
    ranking = repository.get_model(MODEL).ranking_sha256
    recorder = Recorder()
    evaluate = MemoisedEvaluator(repository, MODEL, ranking, CALIBRATION, recorder, "mcts", protocol=protocol)
    assert [m.kl for m in (*evaluate([known]), *evaluate([known]))] == [8.0, 8.0]
    assert recorder.calls == [[known]]
    assert [s.metrics.kl for s in repository.list_samples(MODEL)] == [99.0]
    assert [(s.metrics.kl, s.protocol) for s in repository.list_samples(MODEL, protocol=protocol)] == [(8.0, protocol)]


def test_a_sample_has_the_seconds_that_its_engine_says(repository: SqlRepository) -> None:
    # An engine that answers a batch at once: the time until an answer came would be all of it for the first.
    memoised(repository, Recorder())(cut((4, 4), (2, 8), (1, 1)))
    assert [s.seconds for s in repository.list_samples(MODEL)] == [8.0, 10.0, 2.0]


def test_an_engine_of_this_process_times_each_evaluation() -> None:
    ticks = iter([0.0, 3.0, 100.0, 104.0])
    engine = engine_of(evaluate_by(lambda w: float(sum(w))), ANATOMY, clock=lambda: next(ticks))
    first, second = engine(cut((4, 4), (2, 8)))
    assert (first, second) == (Measured(metrics_of(8.0), 3.0), Measured(metrics_of(10.0), 4.0))


def test_a_model_is_loaded_when_the_first_one_is_missing(repository: SqlRepository) -> None:
    (known,) = cut((4, 4))
    repository.add_samples([sample(repository, known, 99.0)])

    def build() -> None:
        raise AssertionError

    assert memoised(repository, LocalEngine(build))([known])[0].kl == 99.0  # type: ignore[arg-type]


def test_a_result_is_stored_before_the_next_is_measured(repository: SqlRepository) -> None:
    wanted = cut((4, 4), (2, 8), (8, 2))

    def evaluate(architectures: Sequence[Architecture], /) -> Iterator[Measured]:
        for position, _ in enumerate(architectures):
            assert repository.count_samples(MODEL) == position
            if position == 2:
                raise KeyboardInterrupt
            yield Measured(metrics_of(0.5), 0.1)

    with pytest.raises(KeyboardInterrupt):
        memoised(repository, evaluate)(wanted)
    assert [s.architecture for s in repository.list_samples(MODEL)] == wanted[:2]


def test_the_first_stored_sample_wins(repository: SqlRepository) -> None:
    class Raced(Recorder):
        def __call__(self, architectures: Sequence[Architecture], /) -> list[Measured]:
            repository.add_samples([sample(repository, a, 7.0) for a in architectures])
            return super().__call__(architectures)

    evaluate = memoised(repository, Raced())
    assert evaluate(cut((4, 4)))[0].kl == 7.0
    assert repository.count_samples(MODEL) == 1


def test_agreement_must_be_finite_where_it_was_measured(repository: SqlRepository) -> None:
    plain, half, broken = cut((4, 4), (2, 8), (8, 2))
    shares: dict[Architecture, float | None] = {plain: None, half: 0.75, broken: float("nan")}

    def evaluate(architectures: Sequence[Architecture], /) -> list[Metrics]:
        return [replace(metrics_of(0.5), agreement=shares[a]) for a in architectures]

    measured = memoised(repository, LocalEngine(lambda: evaluate))
    assert [m.agreement for m in measured([plain, half])] == [None, 0.75]
    with pytest.raises(InputError, match=r"finite agreement.*'index': 1, 'ffn': \{'units': 2\}"):
        measured([broken])
    # What was measured before there was agreement stays as it was, and is not measured again.
    assert [m.agreement for m in memoised(repository, Recorder())([plain, half])] == [None, 0.75]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_metrics_must_be_finite(repository: SqlRepository, broken: float) -> None:
    evaluate = memoised(repository, engine_of(evaluate_by(lambda _: broken), ANATOMY))
    with pytest.raises(InputError, match=r"finite kl.*'units': 4"):
        evaluate(cut((4, 4)))
    assert repository.count_samples(MODEL) == 0


def with_root(metrics: Metrics, root_kl: float | None) -> Metrics:
    fold = FoldMetrics(metrics.kl, metrics.accuracy, 1.0, metrics.num_tokens, metrics.num_answers, root_kl)
    return replace(metrics, folds=(fold,))


@pytest.mark.parametrize(("stored", "scores"), [(0.5, [0.25, 0.04]), (None, [3.0, 10.0])])
def test_scores_of_both_kinds_are_not_compared(
    repository: SqlRepository, stored: float | None, scores: list[float]
) -> None:
    """Where one sample of these conversations is from before root KL, all are scored by KL."""
    known, missing = cut((4, 4), (2, 8))
    old = sample(repository, known, 3.0)
    repository.add_samples([replace(old, metrics=with_root(old.metrics, stored))])

    def evaluate(architectures: Sequence[Architecture], /) -> list[Measured]:
        return [Measured(with_root(metrics_of(10.0), 0.2), 1.0) for _ in architectures]

    found = memoised(repository, evaluate)([known, missing])
    assert [metrics.score for metrics in found] == pytest.approx(scores)
    assert [metrics.kl for metrics in found] == [3.0, 10.0]
