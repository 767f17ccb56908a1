"""What the repository hands out and takes in: frozen values, never live database rows."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.profile import DeviceProfile
from pruning.measuring.metrics import Metrics
from pruning.planning.plan import PruningPlan


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A registered model. `weights_sha256` tells two fine-tunes of one architecture apart."""

    id: str
    anatomy: ModelAnatomy
    weights_sha256: str
    ranking_sha256: str
    path: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """A calibration set: its id is the sha256 of its conversations and image bytes as they were used."""

    id: str
    name: str
    num_conversations: int
    num_answers: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Sample:
    """One scored configuration: (model, ranking, calibration set, widths) -> raw metrics. Never overwritten, unique.

    `widths` [L] are FFN widths; `source` names who asked for it ("sensitivity", "mcts", ...).
    """

    model_id: str
    ranking_sha256: str
    calibration_id: str
    widths: tuple[int, ...]
    metrics: Metrics
    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class StatisticsRecord:
    """Statistics of a dense model on a calibration set: their file is the artifact `sha256` (safetensors).

    `kind` says what was measured, in the words of those who measure and read it ("activations", "gradients", ...).
    """

    model_id: str
    kind: str
    calibration_id: str
    sha256: str
    created_at: datetime


class SearchStatus(StrEnum):
    """A search's life: queued -> running -> done or failed; running -> queued when its worker is lost.

    A search that ran outside the queue is done from the start.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """One search request and how far it is. `settings` and `result` are JSON documents."""

    id: str
    model_id: str
    settings: dict[str, Any]
    status: SearchStatus
    worker: str | None
    heartbeat_at: datetime | None
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PredictorRecord:
    """A trained predictor: its weights are the artifact `weights_sha256` (safetensors), `config` its JSON side."""

    id: str
    model_id: str
    weights_sha256: str
    config: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What was measured of a device, and when it was registered. A later record of the same id takes its place."""

    profile: DeviceProfile
    created_at: datetime

    @property
    def id(self) -> str:
        return self.profile.id


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan that was handed out. `request_key` makes equal requests return the same plan."""

    request_key: str
    plan: PruningPlan


BINARY: Final = "application/octet-stream"
"""The media type that rankings, statistics and predictors are stored under; what is inside says which it is."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Immutable bytes, addressed by their sha256."""

    sha256: str
    media_type: str
    content: bytes = field(repr=False)
