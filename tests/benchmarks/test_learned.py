"""Predictors of the benchmark are trained once, and what a part adds to its database stays its own."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import learned
from benchmarks.learned import Learned
from benchmarks.subject import MODEL_ID
from pruning.measuring.metrics import Metrics
from storage.contract import Repository
from storage.records import BINARY, CalibrationRecord, ModelRecord, PredictorRecord, Sample
from tests.mcts.landscapes import make_anatomy

DAY = datetime(2025, 1, 1, tzinfo=UTC)
ANATOMY = make_anatomy([64, 64])
CALIBRATION = "c" * 64
RANKING = hashlib.sha256(b"ranking").hexdigest()


class Trainings:
    """In place of training: its predictor is the number of samples that it was given."""

    def __init__(self) -> None:
        self.of: list[tuple[int, int]] = []
        self.is_killed = False

    def __call__(self, repository: Repository, model_id: str, settings: Any, **_: object) -> None:
        count = len(repository.list_samples(model_id))
        self.of.append((count, settings.seed))
        if self.is_killed:
            raise KeyboardInterrupt
        weights = repository.put_artifact(str(count).encode(), BINARY)
        repository.add_predictor(PredictorRecord(f"p{count}-{settings.seed}", model_id, weights, {}, DAY, {}))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    def register(repository: Repository) -> None:
        ranking = repository.put_artifact(b"ranking", BINARY)
        repository.add_model(ModelRecord(MODEL_ID, ANATOMY, "a" * 64, ranking, "/models/tiny", DAY))
        repository.add_calibration(CalibrationRecord(CALIBRATION, "conversations", 8, 100, DAY))

    found = Trainings()
    monkeypatch.setattr(learned, "_register", register)
    monkeypatch.setattr(learned, "train_model", found)
    monkeypatch.setattr(learned, "TRAINED_TARGETS", (0.5,))
    stored = SimpleNamespace(stored=lambda _, record: record.id)
    monkeypatch.setattr(learned, "Predictor", stored)
    return found


def sample(width: int) -> Sample:
    metrics = Metrics(kl=0.5, nll=1.25, accuracy=0.5, num_tokens=10, num_answers=4)
    return Sample(MODEL_ID, RANKING, CALIBRATION, ANATOMY.architecture((width, 64)), metrics, 0.5, "mcts")


SAMPLES = [(0, sample(8)), (0, sample(16)), (1, sample(24))]


def test_each_is_trained_once_whoever_asks(tmp_path: Path, trainings: Trainings) -> None:
    for _ in range(2):
        of_run: Any = Learned(tmp_path, SAMPLES, "d" * 64)
        assert (of_run.predictor(0), of_run.predictor(2), of_run.of_searches_alone()) == ("p3-0", "p3-2", "p2-0")
        assert of_run.training_seconds(2) >= 0.0
    assert trainings.of == [(3, 0), (3, 2), (2, 0)]
    assert Learned(tmp_path, SAMPLES, "e" * 64).predictor(0) is not None
    assert trainings.of[3:] == [(3, 0)], "other samples, another predictor"


def test_what_a_part_adds_to_its_database_no_other_part_sees(tmp_path: Path, trainings: Trainings) -> None:
    of_run = Learned(tmp_path, SAMPLES, "d" * 64)
    for _ in range(2):
        with of_run.repository(0) as (repository, _url):
            assert [model.id for model in repository.list_models()] == [MODEL_ID]
            repository.add_model(ModelRecord("other", ANATOMY, "a" * 64, RANKING, "/models/other", DAY))


def test_a_training_that_was_killed_is_done_again(tmp_path: Path, trainings: Trainings) -> None:
    of_run: Any = Learned(tmp_path, SAMPLES, "d" * 64)
    trainings.is_killed = True
    with pytest.raises(KeyboardInterrupt):
        of_run.predictor(1)
    trainings.is_killed = False
    assert of_run.predictor(1) == "p3-1"
    assert trainings.of == [(3, 1), (3, 1)]
