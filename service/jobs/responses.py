"""What is told of a job."""

from datetime import datetime
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.jobs.settings import JobSettings, read_settings
from storage.records import JobEvent, JobProgress, JobRecord, JobStatus

_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_CREATED = "2026-01-31T12:00:00Z"


class ProgressResponse(BaseModel):
    """How far a running job is."""

    done: int
    total: int
    stage: str = Field(description="What is being done: the target of a search, say.")
    best: float | None = Field(default=None, description="KL of the best configuration so far.")
    seconds_left: float | None = Field(default=None, description="Of the stage, about.")
    loss: float | None = Field(
        default=None, description="recover: of the last step.", exclude_if=lambda value: value is None
    )

    @classmethod
    def of(cls, progress: JobProgress) -> Self:
        return cls(
            done=progress.done,
            total=progress.total,
            stage=progress.stage,
            best=progress.best,
            seconds_left=progress.seconds_left,
            loss=progress.loss,
        )


class JobEventData(BaseModel):
    """What an event says: a `status` event `status`, `is_cancelling` and perhaps `error`; a `progress` event how far
    the job is; a `log` event its `line`."""

    EXAMPLE: ClassVar[str] = (
        '{"at":"2026-01-31T12:00:00Z","progress":{"done":3,"total":40,"stage":"sparsity 0.5","best":0.42,'
        '"seconds_left":61.0}}'
    )

    at: datetime
    status: JobStatus | None = Field(default=None, exclude_if=lambda value: value is None)
    is_cancelling: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    error: str | None = Field(default=None, exclude_if=lambda value: value is None)
    progress: ProgressResponse | None = Field(default=None, exclude_if=lambda value: value is None)
    line: str | None = Field(default=None, exclude_if=lambda value: value is None)

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        document = event.document if event.kind != "progress" else {"progress": event.document}
        return cls(at=event.created_at, **document)


class MeasuredStatistics(BaseModel):
    """Statistics that a job measured, or found measured."""

    kind: str
    calibration: str
    sha256: str


class FoundLatency(BaseModel):
    """The time that a target allows, on the search's device."""

    share: float = Field(description="Of the dense model's time.")
    most_ms: float
    dense_ms: float


class FoundTarget(BaseModel):
    """The best that a search found for one target, on its calibration data."""

    label: str
    sparsity: float | None
    latency: FoundLatency | None = Field(
        default=None, description="Of a search for a share of the time.", exclude_if=lambda value: value is None
    )
    budget: int = Field(description="Parameters that the target allows.")
    kl: float
    agreement: float | None
    evaluations: int


class RecoveryOutcome(BaseModel):
    """What a recovery came to, on the validation part if there is one, else on the selection part, which decided."""

    written: str = Field(description="`recovered`, or `start`: nothing was better, and nothing worse was written.")
    why: str
    steps: int = Field(description="Of training, to the weights that were written.")
    judged_on: str = Field(description="validation or selection.")
    kl: tuple[float, float] = Field(description="To the dense model, before and after.")
    percent_of_dense: tuple[float, float] = Field(description="Before and after.")
    interval: tuple[float, float] = Field(description="90%, of the percent after.")


class ReconstructionOutcome(BaseModel):
    """How the projections out of what was cut were solved, on the job's own data."""

    projections: int = Field(description="That were solved.")
    tokens: int = Field(description="That each was solved from.")
    lost_output: float = Field(description="Share of their outputs, the mean over them, on tokens held out.")
    lost_output_without: float = Field(description="The same, had they been cut alone.")
    damping: tuple[float, float] | None = Field(description="Least and most; null where all stay as they were cut.")
    left_as_cut: int = Field(description="Projections that no damping made better.")


class WrittenFile(BaseModel):
    """A file of a checkpoint that a job wrote."""

    name: str
    bytes: int


def _optional(description: str) -> Any:
    return Field(default=None, description=description, exclude_if=lambda value: value is None)


class JobResult(BaseModel):
    """What came of a job; which fields there are depends on its kind."""

    model: str
    fingerprint: str | None = _optional("register: of the model's anatomy.")
    statistics: list[MeasuredStatistics] | None = _optional("measure: what there is now.")
    search: str | None = _optional("search: its id.")
    calibration: str | None = _optional("search: id of the calibration set.")
    targets: list[FoundTarget] | None = _optional("search: what was found.")
    predictor: str | None = _optional("search, train: id of the predictor.")
    not_trained: str | None = _optional("search: why there is no predictor.")
    plan: str | None = _optional("apply, recover: id of the plan.")
    folder: str | None = _optional("apply, recover: name of the checkpoint's folder, in the worker's output folder.")
    files: list[WrittenFile] | None = _optional("apply, recover: what is in that folder.")
    reconstruction: ReconstructionOutcome | None = _optional("apply, recover: how it was solved, by the job that did.")
    recovery: RecoveryOutcome | None = _optional("recover: what the training gave.")


class JobResponse(BaseModel):
    """A job: what was asked for, how far it is, and what came of it."""

    LOG_LINES: ClassVar = 20

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "5f0c",
                    "kind": "search",
                    "model": "my-llava",
                    "status": "running",
                    "is_cancelling": False,
                    "asked_by": "notebook",
                    "created_at": _CREATED,
                    "started_at": _CREATED,
                    "attempts": 1,
                    "settings": {"kind": "search", "model": "my-llava", "dataset": _SHA, "sparsities": [0.5]},
                    "progress": {"done": 3, "total": 40, "stage": "sparsity 0.5 (ffn)", "best": 0.1},
                    "log": ["INFO search job 5f0c of model my-llava begins"],
                }
            ]
        }
    )

    id: str
    kind: str
    model: str
    status: JobStatus
    is_cancelling: bool = Field(description="It was cancelled, and its worker has not stopped yet.")
    asked_by: str = Field(description="The name of the key that asked, or where the request came from.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = Field(description="Workers that began it; one that loses three is parked.")
    settings: JobSettings | None = Field(description="What was asked for; null where this version does not know it.")
    progress: ProgressResponse | None = None
    result: JobResult | None = Field(
        default=None, description="What came of it; null before it is done, and where this version does not know it."
    )
    error: str | None = None
    log: list[str] = Field(default=[], description="The last lines of its log; not in lists.")

    @classmethod
    def of(cls, job: JobRecord, *, log: list[str] | None = None) -> Self:
        return cls(
            id=job.id,
            kind=job.kind,
            model=job.model_id,
            status=job.status,
            is_cancelling=job.is_cancelling,
            asked_by=job.asked_by,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            attempts=job.attempts,
            settings=read_settings(job.settings),
            progress=None if job.progress is None else ProgressResponse.of(job.progress),
            result=_read_result(job.result),
            error=job.error,
            log=log or [],
        )


def _read_result(document: dict[str, Any] | None) -> JobResult | None:
    """None too where this version does not know it: workers and servers are not brought up at one moment."""
    try:
        return None if document is None else JobResult(**document)
    except ValidationError:
        return None
