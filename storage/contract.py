"""The repository contract that every store keeps, in parts; `tests/storage` runs one suite over all of them.

Who uses a store names the part that it needs. What holds of every method of every part:

Threads and processes: a method is one transaction and may be called from any thread; several processes may share one
database. Values handed out are immutable copies.

Read consistency: a method sees everything that was committed before it was called, by whichever process, and nothing
that is not committed. What it returns is of one moment, and of no earlier one: nothing is cached but the anatomies of
models, which never change. Two calls are two moments. Where that is not so, the method says it.

Immutable once written: models, calibration sets, data sets, statistics, samples, searches, predictors, plans,
artifacts, device profiles. Writing the same value again changes nothing; writing another one under a taken key raises
ConflictError, except where the method says otherwise. What does change: a job, along JobStatus; a model's `path`, which
follows its checkpoint; a predictor's `created_at`, which is its latest training; when a key was used, and whether it is
revoked.

Raises: every method StorageUnavailableError if the database does not answer, and SchemaRevisionError if its schema is
not at our revision; every method that writes InputError for a value that no database can hold. A method's own "Raises"
comes on top.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from pruning.planning.space import Space
from storage.records import (
    Artifact,
    CalibrationRecord,
    DatasetRecord,
    DeviceRecord,
    JobEvent,
    JobProgress,
    JobRecord,
    JobSignal,
    JobStatus,
    KeyRecord,
    ModelRecord,
    NewJob,
    PlanRecord,
    PredictorRecord,
    Sample,
    SearchRecord,
    StagePoint,
    StatisticsRecord,
)


class Artifacts(Protocol):
    """Bytes, addressed by their sha256: rankings, statistics, weights of predictors."""

    def put_artifact(self, content: bytes, media_type: str) -> str:
        """Store bytes and return their sha256.

        Raises ConflictError if they are stored as another media type.
        """

    def get_artifact(self, sha256: str) -> Artifact:
        """The bytes of this sha256. Raises NotFoundError."""


class Samples(Protocol):
    """Everything that was scored: the memo of every search, and what predictors learn from."""

    def add_samples(self, samples: Sequence[Sample]) -> int:
        """Store samples, skipping those already there; return how many were new. All or none are stored.

        No conflict: of two that are of the same, the first one stays, since two workers may score one configuration at
        once; who got fewer than it gave reads the others with `find_samples`.

        Raises:
            NotFoundError: their model, ranking or calibration set is not stored.
            InputError: a metric that is not a finite number, an architecture that is none of the model's, or a protocol
                that is not spelt as `canonical_protocol` spells it.
        """

    def find_samples(
        self,
        model_id: str,
        ranking_sha256: str,
        calibration_id: str,
        architectures: Sequence[Architecture],
        *,
        protocol: str = "",
    ) -> dict[Architecture, Metrics]:
        """The metrics of those of `architectures` that were scored after `protocol`, in the order they were asked for.

        Empty for what is not registered. Many are looked up in several statements, each of its own moment: a sample
        that is stored meanwhile may be in it or not. Raises InputError as `add_samples`.
        """

    def list_samples(
        self,
        model_id: str,
        *,
        ranking_sha256: str | None = None,
        calibration_id: str | None = None,
        protocol: str = "",
    ) -> list[Sample]:
        """The samples of a model that were scored after `protocol`, in the order they were stored."""

    def is_scored_by_kl(self, model_id: str, ranking_sha256: str, calibration_id: str, *, protocol: str = "") -> bool:
        """Whether one of those samples has `Metrics.is_scored_by_kl`; the rest of them is not read."""

    def count_samples(self, model_id: str) -> int:
        """Samples of a model over all rankings, calibration sets and protocols."""


class Searches(Protocol):
    """What finished searches found."""

    def record_search(
        self,
        model_id: str,
        settings: dict[str, Any],
        result: dict[str, Any],
        *,
        space: Space | None = None,
        validation: dict[str, Any] | None = None,
    ) -> SearchRecord:
        """Store a search that is finished.

        A search is a function of what it reads, so one that is run again ends the same: if one of equal settings and
        result is stored already, that one is returned. `validation`, if there is any, is kept in the stored result
        under "validation". It tells no searches apart, and neither does a space that one of them does not say: a search
        with another validation than the stored one replaces it, under a new id since a finished search never changes.

        Raises NotFoundError for an unknown model, InputError for settings, a result or a validation that is not JSON.
        """

    def list_searches(self, model_id: str | None = None) -> list[SearchRecord]:
        """Searches of one model or of all, oldest first."""

    def list_search_ids(self, model_id: str) -> tuple[str, ...]:
        """The ids alone, oldest first: equal ids mean that nothing about the model's searches changed."""


class Jobs(Protocol):
    """The queue: what was asked for over HTTP or with `--queue`, claimed by workers."""

    def add_job(self, job: NewJob) -> tuple[JobRecord, bool]:
        """Queue a job, and say whether it is a new one: the same asker's job of an equal idempotency key is returned.

        Raises ConflictError if that one is of another kind or has other settings, InputError for settings that are not
        JSON.
        """

    def get_job(self, job_id: str) -> JobRecord:
        """Raises NotFoundError."""

    def list_jobs(
        self,
        *,
        status: JobStatus | None = None,
        kind: str | None = None,
        model_id: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[JobRecord]:
        """Jobs of that status, kind and model, newest first."""

    def count_jobs(
        self, *, status: JobStatus | None = None, kind: str | None = None, model_id: str | None = None
    ) -> int:
        """How many `list_jobs` would list without a limit."""

    def job_counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each kind and status."""

    def claim_job(
        self, worker: str, *, stale_after: timedelta, kinds: Sequence[str] | None = None, max_attempts: int = 3
    ) -> JobRecord | None:
        """Make the oldest queued job of `kinds` (any, if None), or running one that lost its worker, this worker's own.

        A running job has lost its worker if there was no heartbeat for `stale_after`, or if the last one lies as far in
        the future: then the clock was set back. One that `max_attempts` workers have lost is parked, with the reason,
        and one that was to be cancelled is cancelled.

        One conditional UPDATE: of several workers that claim at once, exactly one gets a given job. None if there is
        nothing to do. Raises InputError if `stale_after` is negative.
        """

    def heartbeat_job(self, job_id: str, worker: str) -> JobSignal:
        """Say that the job is still worked on, and hear whether it is still to be."""

    def job_signal(self, job_id: str, worker: str) -> JobSignal:
        """What `heartbeat_job` would say, without a heartbeat: for a worker that asks at every evaluation."""

    def report_job(
        self,
        job_id: str,
        worker: str,
        *,
        progress: JobProgress | None = None,
        as_event: bool = False,
        log: Sequence[str] = (),
    ) -> JobSignal:
        """A heartbeat that tells how far the job is, with lines for its log.

        With `as_event`, the progress is also kept as an event. Nothing is stored if the job is not this worker's.
        """

    def finish_job(
        self,
        job_id: str,
        worker: str,
        *,
        result: dict[str, Any] | None = None,
        error: str | None = None,
        cancelled: bool = False,
    ) -> bool:
        """Mark it done (failed, with `error`, or cancelled); False, and no change, if it is no longer this worker's.

        Raises InputError for a result that is not JSON.
        """

    def release_job(self, job_id: str, worker: str) -> bool:
        """Give it back to the queue, as if this worker had never claimed it; cancelled, if that was asked for.

        False, and no change, if it is no longer this worker's.
        """

    def cancel_job(self, job_id: str, *, stale_after: timedelta) -> JobRecord:
        """Cancel a queued job; ask the worker of a running one to stop, or cancel that one too if it lost its worker.

        A job that is cancelled stays as it is. Raises NotFoundError, ConflictError for one that ended otherwise.
        """

    def retry_job(self, job_id: str) -> JobRecord:
        """Queue a job again that failed, was cancelled or parked.

        Raises NotFoundError, ConflictError for any other one.
        """

    def list_job_events(self, job_id: str, *, after: int = 0, limit: int | None = None) -> list[JobEvent]:
        """Events of a job with numbers above `after`, in their order. Empty for an unknown job."""

    def best_over_steps(self, job_id: str, *, parts: int) -> list[StagePoint]:
        """How the best of each stage fell, by the progress events of a job, however many there are.

        Of each of `parts` equal parts of a stage's steps that was told of, the last step and the best until then;
        stages in the order in which they began, their steps in theirs. Empty for an unknown job.
        """

    def last_job_log(self, job_id: str, limit: int) -> list[str]:
        """The last `limit` lines of its log, in their order."""


class Datasets(Protocol):
    """Conversations that were handed in; their content is in the data store."""

    def add_dataset(self, dataset: DatasetRecord) -> DatasetRecord:
        """Register a data set whose content is stored; of equal content, the stored record is returned."""

    def get_dataset(self, dataset_id: str) -> DatasetRecord:
        """Raises NotFoundError."""

    def list_datasets(self) -> list[DatasetRecord]:
        """All of them, oldest first."""


class Keys(Protocol):
    """Keys to the server."""

    def add_key(self, key: KeyRecord) -> KeyRecord:
        """Store a new key. Raises ConflictError if its id is taken."""

    def find_key(self, key_id: str) -> KeyRecord | None:
        """The key of this id, revoked and expired ones included."""

    def list_keys(self) -> list[KeyRecord]:
        """All keys, oldest first."""

    def has_keys(self) -> bool:
        """Whether there ever was a key: revoked ones count, so that a server never opens by revoking the last one."""

    def revoke_key(self, key_id: str) -> KeyRecord:
        """From now on it opens nothing; one that is revoked stays as it is. Raises NotFoundError."""

    def note_key_use(self, key_id: str, at: datetime) -> None:
        """Keep when the key was used last."""


class Catalogue(Protocol):
    """What is registered: models, what they are measured on, what was measured of them, predictors and devices."""

    def add_model(self, model: ModelRecord) -> ModelRecord:
        """Register a model whose ranking artifact is stored.

        Equal but for `created_at`, `path` and `ranking_origin`: the stored one is returned, at its new path, since
        checkpoints move, and with the origin of its ranking if that was not known before.

        Raises NotFoundError if the ranking is not stored, ConflictError if the id is taken by another model.
        """

    def get_model(self, model_id: str) -> ModelRecord:
        """Raises NotFoundError."""

    def registered_at(self, model_id: str) -> datetime | None:
        """When the model of this id was registered, None if there is none: tells it from another that had the id."""

    def list_models(self) -> list[ModelRecord]:
        """All models, oldest first."""

    def add_calibration(self, calibration: CalibrationRecord) -> CalibrationRecord:
        """Register a set; equal but for `name` and `created_at`, the stored one is returned.

        The id is a digest of the content, so an equal set under another name is the stored one. Raises ConflictError
        if the id is taken by a set of another size.
        """

    def get_calibration(self, calibration_id: str) -> CalibrationRecord:
        """Raises NotFoundError."""

    def add_statistics(self, record: StatisticsRecord) -> StatisticsRecord:
        """Register statistics; there is one a (model, kind, calibration set). Equal but for `created_at`, the stored
        one is returned.

        Raises NotFoundError if their model, calibration set or artifact is not stored, ConflictError for other bytes
        under the same key.
        """

    def list_statistics(self, model_id: str) -> list[StatisticsRecord]:
        """All statistics of a model, oldest first."""

    def latest_statistics(self, model_id: str, kind: str) -> StatisticsRecord | None:
        """The statistics of that kind with the latest `created_at`, None if there are none."""

    def add_predictor(self, predictor: PredictorRecord) -> PredictorRecord:
        """Register a predictor, which becomes its model's latest, also if an equal one was there before.

        Equal but for `created_at`. Raises NotFoundError if its model or weights are not stored, ConflictError if the id
        is taken by another one, InputError for a config that is not JSON.
        """

    def get_predictor(self, predictor_id: str) -> PredictorRecord:
        """Raises NotFoundError."""

    def latest_predictor(self, model_id: str) -> PredictorRecord | None:
        """The predictor of a model with the latest `created_at`, None if it has none."""

    def latest_predictor_id(self, model_id: str) -> str | None:
        """The id of `latest_predictor` alone: to see whether there is a new one, without reading all of it."""

    def list_predictor_spaces(self, model_id: str) -> list[tuple[str, dict[str, Any] | None]]:
        """Id and space of the predictors of a model, oldest first: what else a predictor says of itself is long."""

    def list_predictors(self, model_id: str | None = None) -> list[PredictorRecord]:
        """Predictors of one model or of all, oldest first."""

    def add_device(self, record: DeviceRecord) -> DeviceRecord:
        """Register what was measured of a device: from now on the answer of `get_device`; older profiles are kept.

        No conflict: machines are measured again, and the last one answers. If the profile equals that one, its record
        is returned. Raises ConflictError if the id is one of the catalogue that comes with this package.
        """

    def get_device(self, device_id: str) -> DeviceRecord:
        """The profile registered last under this id. Raises NotFoundError."""

    def latest_device_number(self, device_id: str) -> int:
        """Tells the profile that `get_device` returns from every other one of this database, for a fraction of the time
        that reading it takes. Raises NotFoundError."""

    def list_devices(self) -> list[DeviceRecord]:
        """The last profile of each id, in the order in which the ids were first registered."""

    def list_device_ids(self) -> tuple[str, ...]:
        """The ids alone, in the same order: a profile may take megabytes."""


class Plans(Protocol):
    """Plans that were handed out."""

    def add_plan(self, record: PlanRecord) -> PlanRecord:
        """Store a plan; if its `request_key` is taken, even by a racing request, return the stored one instead.

        Raises NotFoundError for an unknown model, ConflictError if the plan's id is taken by other content.
        """

    def get_plan(self, plan_id: str) -> PlanRecord:
        """The plan, with the first request that it answered. Raises NotFoundError."""

    def find_plan(self, request_key: str) -> PlanRecord | None:
        """The plan that answered an equal request, None if there was none."""


class Registry(Catalogue, Artifacts, Protocol):
    """What is registered, and the files that its records name."""


class Findings(Samples, Searches, Protocol):
    """What was scored, and the searches that asked for it."""


class JobCatalogue(Catalogue, Datasets, Plans, Protocol):
    """What jobs name."""


class Repository(Artifacts, Samples, Searches, Jobs, Datasets, Keys, Catalogue, Plans, Protocol):
    """Everything that outlives a process."""

    def commit_mark(self) -> str | None:
        """Two equal marks, read one after the other from one repository, say that nothing was committed in between.

        Different ones say nothing. None if the database does not tell; never raises.
        """

    async def commit_mark_on_loop(self) -> str | None:
        """`commit_mark` for code on an event loop, which goes on meanwhile."""

    def check(self) -> None:
        """Raises StorageUnavailableError or SchemaRevisionError unless the database answers and is at our revision."""

    def check_writable(self) -> None:
        """Raises StorageUnavailableError unless the database could take more now, as far as trying it tells.

        Commits nothing, waits for no other writer. A full disk is told; one that will be full after the next megabyte
        is not.
        """
