"""What the repository hands out and takes in: frozen values, never live database rows."""

from dataclasses import asdict, dataclass, field
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
    """What a ranking was made by: a kind of statistics measured on a calibration set, or by `WEIGHTS` alone.

    `reconstructs`: plans of the model count on reconstruction on that set, and its samples are of what that gives.
    """

    kind: str
    calibration_id: str | None = None
    reconstructs: bool = False


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

    @property
    def reconstructed_on(self) -> str | None:
        """The calibration set on which what is cut out of the model is solved anew; None: it is not."""
        origin = self.ranking_origin
        return origin.calibration_id if origin is not None and origin.reconstructs else None


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


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """One finished search. `settings` and `result` are JSON documents.

    `space` is what it searched, as `pruning.planning.space.Space.from_document` reads it; None in searches of before
    it was stored.
    """

    id: str
    model_id: str
    settings: dict[str, Any]
    result: dict[str, Any]
    created_at: datetime
    space: dict[str, Any] | None = None


class JobStatus(StrEnum):
    """A job's life: queued -> running -> done, failed or cancelled; running -> queued when its worker is lost or stops,
    and parked when that happened too often. What failed, was cancelled or parked can be queued again.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PARKED = "parked"

    @property
    def is_final(self) -> bool:
        """Whether nothing happens to the job any more unless somebody asks for it."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a running job is.

    Attributes:
        done, total: steps of `stage`: evaluations of a search, bytes or batches of what is read.
        stage: what is being done, in words.
        best: the KL of the best configuration so far, where there is one; in a recovery, of the best weights.
        seconds_left: of the stage, about; None where nothing is known yet.
        loss: of the last step, where something is trained by one.
    """

    done: int
    total: int
    stage: str
    best: float | None = None
    seconds_left: float | None = None
    loss: float | None = None

    def document(self) -> dict[str, Any]:
        """As it is stored. Without a loss it says nothing of one: servers from before there was any read it, too."""
        found = asdict(self)
        return found if self.loss is not None else {name: x for name, x in found.items() if name != "loss"}


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is asked of a worker.

    Attributes:
        kind: what is to be done, in the words of `service.jobs.settings`.
        model_id: of the model that it is about; it need not be registered.
        settings: a JSON document.
        asked_by: who asked: the name of a key, or where the request came from.
        idempotency_key: of those that one asker gives, equal ones mean one job.
    """

    kind: str
    model_id: str
    settings: dict[str, Any]
    asked_by: str
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job and how far it is.

    Attributes:
        is_cancelling: somebody asked for it to be cancelled, and its worker has not stopped yet.
        attempts: workers that have begun it and neither finished it nor gave it back.
        result: a JSON document, of a job that is done.
        error: why it failed, or was parked.
    """

    id: str
    kind: str
    model_id: str
    settings: dict[str, Any]
    status: JobStatus
    asked_by: str
    created_at: datetime
    is_cancelling: bool = False
    worker: str | None = None
    heartbeat_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    progress: JobProgress | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


class JobSignal(StrEnum):
    """What the database says to a worker about the job that it works on."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LOST = "lost"


class JobEventKind(StrEnum):
    """What an event tells of: a change of status, how far the job is, or a line of its log."""

    STATUS = "status"
    PROGRESS = "progress"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; `number` counts the job's events from 1. `document` is JSON."""

    number: int
    kind: JobEventKind
    document: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StagePoint:
    """The `best` of a stage of a job, as of its step number `done`."""

    stage: str
    done: int
    best: float


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """Conversations with their pictures that were handed in; `id` is the sha256 of the content in the data store."""

    id: str
    name: str
    num_conversations: int
    num_answers: int
    num_pictures: int
    size_bytes: int
    added_by: str
    created_at: datetime


class KeyScope(StrEnum):
    """What a key may do; each may do what those before it may."""

    READ = "read"
    PLAN = "plan"
    RUN = "run"
    ADMIN = "admin"

    def allows(self, needed: "KeyScope") -> bool:
        """Whether a key of this scope may do what needs `needed`."""
        order = list(KeyScope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key to the server, of which only a salted hash is stored.

    Attributes:
        id: the part of the key that it is found by; no secret.
        digest: sha256 over `salt` and the secret part, in hex digits.
        limit: requests that it may make, such as "100/minute"; None: the server's own limit.
    """

    id: str
    name: str
    scope: KeyScope
    salt: str = field(repr=False)
    digest: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    limit: str | None = None


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
