"""Allocators that decide from stored statistics of the dense model: no search, no samples."""

from typing import TYPE_CHECKING

from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import CheckpointError, InputError, StorageError
from pruning.planning.plan_parts import Provenance
from service.lru_cache import LruCache
from service.methods.family import Answer, Candidate, Question, Unavailable, of_other_spaces
from storage.contract import Registry
from storage.records import StatisticsRecord

if TYPE_CHECKING:
    from pruning.allocators.registry import StatisticalAllocator
    from pruning.measuring.statistics import ModelStatistics

# Statistics of a model of 7 billion parameters are 14 MB.
_MAX_CACHED = 4


class StatisticalMethods:
    """The MethodFamily of everything in `pruning.allocators.registry`."""

    def __init__(self, repository: Registry) -> None:
        self._repository = repository
        self._statistics: LruCache[str, ModelStatistics] = LruCache(_MAX_CACHED)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The model's latest statistics of the kind that the allocator works from."""
        if question.request.space not in method.spaces:
            return of_other_spaces(method, question.request.space)
        from pruning.allocators.registry import STATISTICAL_ALLOCATORS

        allocator = STATISTICAL_ALLOCATORS[method.value]
        record = self._repository.latest_statistics(question.model.id, allocator.kind.value)
        if record is not None:
            return Candidate(record.sha256, lambda: self._answer(allocator, record, question))
        error = InputError(
            f"method '{method}' needs statistics of kind '{allocator.kind}'",
            values=f"model {question.model.id!r} has none",
            remedy=f"Measure them with `lop model measure {question.model.id} --data FILE --kind {allocator.kind}`, "
            "or leave `method` out",
        )
        return Unavailable(f"no statistics of kind '{allocator.kind}' are stored", error)

    def _answer(self, allocator: "StatisticalAllocator", record: StatisticsRecord, question: Question) -> Answer:
        """Raises StorageError if the stored statistics are damaged."""
        anatomy = question.model.anatomy
        statistics = self._statistics.get(record.sha256, lambda: self._load(record, anatomy))
        limits = question.demand.limits_for(compensates=allocator.compensates)
        allocation = allocator.allocate(anatomy, statistics, limits)
        notes = []
        if allocation.ranking is not None:
            notes.append(f"{allocator.method} ranks the channels of a layer in its own way")
            if allocation.ranking.compensates:
                notes.append("down projections that are cut get a bias for what they lose")
        return Answer(
            allocation.architecture,
            ranking=allocation.ranking,
            provenance=Provenance(calibration=record.calibration_id),
            notes=tuple(notes),
        )

    def _load(self, record: StatisticsRecord, anatomy: ModelAnatomy) -> "ModelStatistics":
        from pruning.measuring.statistics import ModelStatistics

        try:
            statistics = ModelStatistics.from_bytes(self._repository.get_artifact(record.sha256).content)
            statistics.check(anatomy)
        except CheckpointError as error:
            raise StorageError(
                "stored statistics must be readable",
                values=f"{record.kind} of model {record.model_id!r}: {error}",
                remedy="Upgrade lop-service, or measure them on other data with `lop model measure`",
            ) from error
        return statistics
