"""A tiny checkpoint with data, registered in a real database."""

from pathlib import Path

import pytest
import torch

from lop.workflows.registration import register_model
from pruning.data.conversations import load_conversations
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint, write_conversations


@pytest.fixture(autouse=True)
def _process_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One thread, no settings of the user's, and a `lop worker` that leaves the logging of the test process alone.

    Its handler would write to the standard error of its own test for ever, and fail loudly once that is closed.
    """
    torch.set_num_threads(1)
    for name in ("LOP_DATABASE_URL", "LOP_URL", "LOP_KEY", "LOP_MODEL_ROOTS", "LOP_DATA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOP_DATA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LOP_OUTPUT_ROOT", str(tmp_path / "output"))
    monkeypatch.setattr("service.logs.configure_logging", lambda _level, _form: None)


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictors are trained on a quarter of the problems and for a quarter of the epochs, where commands and jobs have
    no options for it. What a predictor is worth, `tests/policy_model` and the benchmarks tell."""
    monkeypatch.setattr("policy_model.training.PROBLEMS_PER_OPTION", 10)
    monkeypatch.setattr("policy_model.training.MAX_EPOCHS", 5)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("lop") / "model")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversation file with 80 answers. Read-only."""
    return write_conversations(tmp_path_factory.mktemp("data"), 40)


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, data: Path) -> Path:
    """A SQLite file that knows the checkpoint as "tiny". Read-only."""
    path = tmp_path_factory.mktemp("db") / "lop.db"
    repository = open_repository(f"sqlite:///{path}", create=True)
    register_model(repository, "tiny", checkpoint, load_conversations(data))
    repository.close()
    return path


@pytest.fixture
def database(tmp_path: Path, registered: Path) -> str:
    """The URL of a fresh copy of `registered`."""
    (tmp_path / "lop.db").write_bytes(registered.read_bytes())
    return f"sqlite:///{tmp_path / 'lop.db'}"


@pytest.fixture
def repository(database: str) -> Repository:
    return open_repository(database)
