"""Predictors of the stored samples that the predictor's benchmark asks: each is trained once, and kept in a database.

A training takes minutes and every part needs some of them, so that a run that was killed finds those that are there.
The folder is of these samples and of the code that trains: with others, it is another one.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.collect import TRAINED_TARGETS
from benchmarks.measured_code import AT_START
from benchmarks.subject import MODEL_ID, REFERENCE
from lop.workflows.measuring import record_calibration
from lop.workflows.registration import register_model
from lop.workflows.training import train_model
from mcts.settings import SearchSettings
from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings
from pruning.atomic_file import replace_file
from pruning.data.conversations import load_conversations
from pruning.planning.plan_parts import content_id
from storage.contract import Repository
from storage.records import Sample
from storage.sql_repository import open_repository

_SEARCHES_ALONE = "searches alone"
"""The predictor of the samples that no round has added to; others are called by their training seed."""

_TRAINS = ("lop.workflows.training", "lop.workflows.registration")


class Learned:
    """Predictors of the reference, each in a database of its own, where it is the only one.

    Args:
        work: folder, in which this makes one.
        trained: the samples to learn from, as (round, sample).
        samples: digest of them.
    """

    def __init__(self, work: Path, trained: Sequence[tuple[int, Sample]], samples: str) -> None:
        code = AT_START.digests(AT_START.reached(_TRAINS))
        self._folder = work / f"learned-{content_id({'samples': samples, 'code': code})}"
        self._trained = trained

    def predictor(self, seed: int) -> Predictor:
        """Of all samples, and of what they know of unseen conversations."""
        return self._stored(str(seed))

    def of_searches_alone(self) -> Predictor:
        """Of the samples of the searches, before any round."""
        return self._stored(_SEARCHES_ALONE)

    def training_seconds(self, seed: int) -> float:
        """What the training took, from its last beginning."""
        database = self._database(str(seed))
        return float(database.with_suffix(".seconds").read_text())

    @contextmanager
    def repository(self, seed: int) -> Iterator[tuple[Repository, str]]:
        """A copy of the database of that predictor, and its URL: parts of the benchmark may add to it."""
        database = self._database(str(seed))
        with TemporaryDirectory() as folder:
            copy = shutil.copyfile(database, Path(folder) / "lop.db")
            with open_repository(f"sqlite:///{copy}") as repository:
                yield repository, f"sqlite:///{copy}"

    def _stored(self, name: str) -> Predictor:
        with open_repository(f"sqlite:///{self._database(name)}") as repository:
            (record,) = repository.list_predictors(MODEL_ID)
            return Predictor.stored(repository, record)

    def _database(self, name: str) -> Path:
        """With the predictor `name`, which is trained if it is not there."""
        done = self._folder / f"{name.replace(' ', '-')}.db"
        if done.is_file():
            return done
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._folder) as folder:
            begun = Path(folder) / done.name
            with open_repository(f"sqlite:///{begun}", create=True) as repository:
                _register(repository)
                rounds = (0,) if name == _SEARCHES_ALONE else {number for number, _ in self._trained}
                repository.add_samples([sample for number, sample in self._trained if number in rounds])
                started = time.perf_counter()
                self._train(repository, name)
                seconds = time.perf_counter() - started
            replace_file(done.with_suffix(".seconds"), str(seconds).encode())
            begun.replace(done)
        return done

    def _train(self, repository: Repository, name: str) -> None:
        """What is interrupted here goes on from its last checkpoint."""
        checkpoints = self._folder / f"{name.replace(' ', '-')}-checkpoints"
        if name == _SEARCHES_ALONE:
            settings, budgets = TrainingSettings(), []
        else:
            settings = TrainingSettings(seed=int(name))
            searched = SearchSettings(sparsities=TRAINED_TARGETS)
            budgets = [t.budget for t in searched.resolve_targets(repository.get_model(MODEL_ID).anatomy)]
        train_model(repository, MODEL_ID, settings, budgets=budgets, resume_folder=checkpoints)


def _register(repository: Repository) -> None:
    """The reference model with its statistics, and the calibration set of the samples."""
    conversations = load_conversations(REFERENCE / "data" / "calibration.json")
    register_model(repository, MODEL_ID, REFERENCE / "model", conversations)
    record_calibration(repository, conversations, "calibration.json")
