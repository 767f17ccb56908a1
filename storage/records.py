"""What the repository hands out and takes in: frozen values, never live database rows."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.devices.profile import DeviceProfile
from pruning.measuring.metrics import Metrics
from pruning.planning.plan import PruningPlan

WEIGHTS: Final = "weights"
"""The kind of a ranking that was made from the model's weights alone."""


@dataclass(frozen=True, slots=True)
class RankingOrigin:
    """What a ranking was made by: a kind of statistics measured on a calibration set, or by `WEIGHTS` alone."""

    kind: str
    calibration_id: str | None = None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A registered model. `weights_sha256` tells two fine-tunes of one architecture apart.

    `ranking_origin` is what its ranking was made by; None where that is not known, as in models of before it was noted.
    """

    id: str
    anatomy: ModelAnatomy
    weights_sha256: str
    ranking_sha256: str
    path: str
    created_at: datetime
    ranking_origin: RankingOrigin | None = None


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
    """One scored model: (model, ranking, calibration set, architecture, protocol) -> raw metrics. Never overwritten.

    Attributes:
        seconds: that the evaluation took, where it ran.
        source: who asked for it ("sensitivity", "mcts", ...).
        protocol: what was done after cutting and before scoring, as `storage.documents.canonical_protocol` spells it;
            empty: nothing.
    """

    model_id: str
    ranking_sha256: str
    calibration_id: str
    architecture: Architecture
    metrics: Metrics
    seconds: float
    source: str
    protocol: str = ""


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
    """One search request and how far it is. `settings` and `result` are JSON documents.

    `space` is what it searches, as `pruning.planning.space.Space.from_document` reads it; None in searches of before
    it was stored.
    """

    id: str
    model_id: str
    settings: dict[str, Any]
    status: SearchStatus
    worker: str | None
    heartbeat_at: datetime | None
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    space: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PredictorRecord:
    """A trained predictor: its weights are the artifact `weights_sha256` (safetensors), `config` its JSON side.

    `space` is what it chooses from, as in `SearchRecord`.
    """

    id: str
    model_id: str
    weights_sha256: str
    config: dict[str, Any]
    created_at: datetime
    space: dict[str, Any] | None = None


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
