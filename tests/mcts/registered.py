"""A SQLite repository with one model and one calibration set registered."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from storage.records import CalibrationRecord, ModelRecord
from storage.sql_repository import SqlRepository, open_repository
from tests.mcts.landscapes import make_anatomy

MODEL = "tiny"
CALIBRATION = "c" * 64


def open_registered(path: Path, widths: Sequence[int], per_channel: Sequence[int] | int = 3) -> SqlRepository:
    """The repository at `path`, made if absent; registering twice changes nothing."""
    repository = open_repository(f"sqlite:///{path}", create=True)
    ranking = repository.put_artifact(b"ranking", "application/octet-stream")
    day = datetime(2025, 1, 1, tzinfo=UTC)
    repository.add_model(ModelRecord(MODEL, make_anatomy(widths, per_channel), "a" * 64, ranking, "/models/tiny", day))
    repository.add_calibration(CalibrationRecord(CALIBRATION, "conversations", 8, 100, day))
    return repository
