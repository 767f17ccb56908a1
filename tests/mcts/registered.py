"""A SQLite repository with one model and one calibration set registered."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from engines.local import LocalEngine
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from storage.records import CalibrationRecord, ModelRecord
from storage.sql_repository import SqlRepository, open_repository
from tests.mcts.landscapes import EvaluateWidths, make_anatomy

MODEL = "tiny"
CALIBRATION = "c" * 64


def engine_of(
    evaluate: EvaluateWidths, anatomy: ModelAnatomy, clock: Callable[[], float] = perf_counter
) -> LocalEngine:
    """Scores in this process by what takes FFN widths."""

    def by_architecture(architectures: Sequence[Architecture]) -> list[Metrics]:
        return evaluate([anatomy.ffn_widths(architecture) for architecture in architectures])

    return LocalEngine(lambda: by_architecture, clock=clock)


def open_registered(path: Path, widths: Sequence[int], per_channel: Sequence[int] | int = 3) -> SqlRepository:
    """The repository at `path`, made if absent; registering twice changes nothing."""
    repository = open_repository(f"sqlite:///{path}", create=True)
    ranking = repository.put_artifact(b"ranking", "application/octet-stream")
    day = datetime(2025, 1, 1, tzinfo=UTC)
    repository.add_model(ModelRecord(MODEL, make_anatomy(widths, per_channel), "a" * 64, ranking, "/models/tiny", day))
    repository.add_calibration(CalibrationRecord(CALIBRATION, "conversations", 8, 100, day))
    return repository
