"""The repository contract that every store keeps; `tests/storage` runs one suite over all of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pruning.measuring.metrics import Metrics
from storage.records import (
    Artifact,
    CalibrationRecord,
    DeviceRecord,
    ModelRecord,
    PlanRecord,
    PredictorRecord,
    Sample,
    SearchRecord,
    SearchStatus,
    StatisticsRecord,
)


class Repository(ABC):
    """Everything that outlives a process.

    Threads and processes: every method is one transaction and may be called from any thread; several processes may
    share one database. Values handed out are immutable copies.

    Immutable once written: models, calibration sets, statistics, samples, predictors, plans, artifacts, device
    profiles. Writing the same value again is a no-op; writing another value under a taken key raises ConflictError
    (samples: the first one stays, since two workers may measure the same configuration at once; devices: the last one
    answers, since machines are measured again). Searches change along SearchStatus, until they are done or failed; a
    model's `path` follows its checkpoint, and a predictor's `created_at` its latest training.

    Errors: NotFoundError for an unknown id in a `get_`, ConflictError as above, SchemaRevisionError and
    StorageUnavailableError from any method.
    """

    # -- artifacts -----------------------------------------------------------------------------------------------
    @abstractmethod
    def put_artifact(self, content: bytes, media_type: str) -> str:
        """Store bytes and return their sha256."""

    @abstractmethod
    def get_artifact(self, sha256: str) -> Artifact: ...

    # -- models --------------------------------------------------------------------------------------------------
    @abstractmethod
    def add_model(self, model: ModelRecord) -> ModelRecord:
        """Register a model whose ranking artifact is stored.

        Equal but for `created_at` and `path`: the stored one is returned, at its new path: checkpoints move.
        """

    @abstractmethod
    def get_model(self, model_id: str) -> ModelRecord: ...

    @abstractmethod
    def list_models(self) -> list[ModelRecord]:
        """All models, oldest first."""

    # -- calibration sets ----------------------------------------------------------------------------------------
    @abstractmethod
    def add_calibration(self, calibration: CalibrationRecord) -> CalibrationRecord:
        """Register a set; equal but for `name` and `created_at`, the stored one is returned."""

    @abstractmethod
    def get_calibration(self, calibration_id: str) -> CalibrationRecord: ...

    # -- statistics ----------------------------------------------------------------------------------------------
    @abstractmethod
    def add_statistics(self, record: StatisticsRecord) -> StatisticsRecord:
        """Register statistics whose model, calibration set and artifact are stored; there is one a (model, kind, set).

        Equal but for `created_at`, the stored one is returned.
        """

    @abstractmethod
    def list_statistics(self, model_id: str) -> list[StatisticsRecord]:
        """All statistics of a model, oldest first."""

    @abstractmethod
    def latest_statistics(self, model_id: str, kind: str) -> StatisticsRecord | None:
        """The statistics of that kind with the latest `created_at`, None if there are none."""

    # -- samples -------------------------------------------------------------------------------------------------
    @abstractmethod
    def add_samples(self, samples: Sequence[Sample]) -> int:
        """Store samples, skipping those already there; return how many were new."""

    @abstractmethod
    def find_samples(
        self, model_id: str, ranking_sha256: str, calibration_id: str, widths: Sequence[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Metrics]:
        """The metrics already measured, for those of `widths` that were: the memo of the search."""

    @abstractmethod
    def list_samples(
        self, model_id: str, *, ranking_sha256: str | None = None, calibration_id: str | None = None
    ) -> list[Sample]:
        """All samples of a model, in the order they were stored."""

    @abstractmethod
    def count_samples(self, model_id: str) -> int: ...

    # -- predictors ----------------------------------------------------------------------------------------------
    @abstractmethod
    def add_predictor(self, predictor: PredictorRecord) -> PredictorRecord:
        """Register a predictor, which becomes its model's latest, also if an equal one was there before."""

    @abstractmethod
    def get_predictor(self, predictor_id: str) -> PredictorRecord: ...

    @abstractmethod
    def latest_predictor(self, model_id: str) -> PredictorRecord | None: ...

    @abstractmethod
    def latest_predictor_id(self, model_id: str) -> str | None:
        """The id of `latest_predictor` alone: to see whether there is a new one, without reading all of it."""

    @abstractmethod
    def list_predictors(self, model_id: str | None = None) -> list[PredictorRecord]: ...

    # -- devices -------------------------------------------------------------------------------------------------
    @abstractmethod
    def add_device(self, record: DeviceRecord) -> DeviceRecord:
        """Register what was measured of a device: from now on the answer of `get_device`; older profiles are kept.

        If the profile equals the one that answers now, that record is returned. ConflictError if the id is one of the
        catalogue's.
        """

    @abstractmethod
    def get_device(self, device_id: str) -> DeviceRecord:
        """The profile registered last under this id."""

    @abstractmethod
    def latest_device_number(self, device_id: str) -> int:
        """Tells the profile that `get_device` returns from every other one of this database, for a fraction of the time
        that reading it takes."""

    @abstractmethod
    def list_devices(self) -> list[DeviceRecord]:
        """The last profile of each id, in the order in which the ids were first registered."""

    @abstractmethod
    def list_device_ids(self) -> tuple[str, ...]:
        """The ids alone, in the same order: a profile may take megabytes."""

    # -- plans ---------------------------------------------------------------------------------------------------
    @abstractmethod
    def add_plan(self, record: PlanRecord) -> PlanRecord:
        """Store a plan; if its `request_key` is taken, even by a racing request, return the stored one instead."""

    @abstractmethod
    def get_plan(self, plan_id: str) -> PlanRecord: ...

    @abstractmethod
    def find_plan(self, request_key: str) -> PlanRecord | None: ...

    # -- searches ------------------------------------------------------------------------------------------------
    @abstractmethod
    def add_search(self, model_id: str, settings: dict[str, Any]) -> SearchRecord:
        """Queue a search."""

    @abstractmethod
    def record_search(
        self,
        model_id: str,
        settings: dict[str, Any],
        result: dict[str, Any],
        *,
        validation: dict[str, Any] | None = None,
    ) -> SearchRecord:
        """Store a search that ran outside the queue: done from the start, no worker ever claims it.

        A search is a function of what it reads, so one that is run again ends the same: if one of equal settings and
        result is done already, that one is returned. `validation`, if there is any, is kept in the stored result under
        "validation" and tells no searches apart: an equal one with another validation, or none, is replaced by a new
        one, under a new id since a finished search never changes; without `validation`, the one that is there stays.
        """

    @abstractmethod
    def get_search(self, search_id: str) -> SearchRecord: ...

    @abstractmethod
    def list_searches(self, *, model_id: str | None = None, status: SearchStatus | None = None) -> list[SearchRecord]:
        """Searches of one model or of all, in one status or any, oldest first."""

    @abstractmethod
    def list_search_ids(self, model_id: str, status: SearchStatus) -> tuple[str, ...]:
        """The ids alone, oldest first: equal ids of finished searches mean that nothing about them changed."""

    @abstractmethod
    def claim_search(self, worker: str, *, stale_after: timedelta) -> SearchRecord | None:
        """Make the oldest queued search (or running one without a heartbeat for `stale_after`) this worker's own.

        One conditional UPDATE: of several workers that claim at once, exactly one gets a given search. None if there
        is nothing to do.
        """

    @abstractmethod
    def heartbeat(self, search_id: str, worker: str) -> bool:
        """Say that the search is still worked on; False if it is no longer this worker's."""

    @abstractmethod
    def finish_search(
        self, search_id: str, worker: str, *, result: dict[str, Any] | None = None, error: str | None = None
    ) -> bool:
        """Mark it done (or failed, with `error`); False, and no change, if it is no longer this worker's."""

    # -- health --------------------------------------------------------------------------------------------------
    @abstractmethod
    def check(self) -> None:
        """Raise StorageUnavailableError or SchemaRevisionError unless the database answers and is at our revision."""
