"""Running a search: the engine that evaluates, the calibration set's record, and the search over both."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engines.memo import EvaluateInOrder, Measured, MemoisedEvaluator
from lop.workflows.engines import LOCAL_ENGINE, EngineOptions, EvaluatorRecipe, open_engine, squares_for
from lop.workflows.measuring import record_calibration
from lop.workflows.validating import Validated
from mcts.progress import Progress, silent
from mcts.result import SearchResult
from mcts.settings import SearchMethod, SearchSettings
from pruning.anatomy.architecture import DENSE, Architecture
from pruning.data.conversations import Conversation, calibration_id
from pruning.planning.prices import LatencyPrice
from pruning.planning.ranking import Ranking
from service.devices import DeviceFinder, priced
from storage.contract import Repository
from storage.records import SearchRecord

DENSE_SOURCE = "dense"
"""`source` of the sample that is the dense model itself."""


def search_model(
    repository: Repository,
    model_id: str,
    conversations: list[Conversation],
    settings: SearchSettings,
    *,
    name: str,
    progress: Progress = silent,
    engine: EngineOptions = LOCAL_ENGINE,
    on_stored: Callable[[], None] | None = None,
    record: bool = True,
    squares: bytes | None = None,
) -> SearchResult:
    """Search `model_id` on calibration `conversations`; every sample is stored, so a killed search resumes.

    The engine changes how long it takes, never the result. With `record`, the result is kept among the finished
    searches by `record_result`. `on_stored` is called after each sample that is stored: more often than `progress`, of
    which one-layer scans give a batch at a time. It may raise to stop the search.
    `squares` are `squares_for` these conversations where densities are searched; None: they are measured here, unseen.

    Raises:
        NotFoundError, InfeasibleTargetError: before the model is loaded, or Ray started; a device may be missing, too.
        FingerprintMismatchError: the checkpoint changed since it was registered.
        InputError: KV groups are to be cut, and the model's ranking does not order them; the engine's address, or the
            cluster there.
        MissingExtraError: the engine is Ray, which is not installed.
        StorageUnavailableError: the database went away; what was stored is intact.
    """
    from mcts.worker import run_search

    model = repository.get_model(model_id)
    calibration = record_calibration(repository, conversations, name)
    ranking = repository.get_artifact(model.ranking_sha256).content
    latency = priced(repository, model.anatomy, settings.latency)
    settings.resolve_targets(model.anatomy, latency)
    Ranking.from_bytes(ranking).check_space(settings.space(model.anatomy))
    if squares is None and settings.axes.has_density:
        squares = squares_for(model, conversations)
    recipe = EvaluatorRecipe.of(model, ranking, conversations, has_bits=settings.axes.has_bits, squares=squares)
    leaves = settings.parallel_leaves if settings.method is SearchMethod.MCTS else None
    with open_engine(recipe, engine, parallel_leaves=leaves) as opened:
        evaluate = opened if on_stored is None else _telling(opened, on_stored)
        result = run_search(repository, model_id, calibration.id, evaluate, settings, progress, latency=latency)
        # What the dense model itself is worth there, by which reports choose: a scan has stored it, others have not.
        memo = MemoisedEvaluator(repository, model_id, model.ranking_sha256, calibration.id, evaluate, DENSE_SOURCE)
        (dense,) = memo([DENSE])
        result = result.cross_validated(dense)
    if record:
        record_result(repository, model_id, conversations, settings, result, name=name)
    return result


def _telling(evaluate: EvaluateInOrder, on_stored: Callable[[], None]) -> EvaluateInOrder:
    """The same engine, which tells when it is asked for the next measurement: then the one before is stored."""

    def told(architectures: Sequence[Architecture]) -> Iterator[Measured]:
        for measured in evaluate(architectures):
            yield measured
            on_stored()

    return told


def record_result(
    repository: Repository,
    model_id: str,
    conversations: Sequence[Conversation],
    settings: SearchSettings,
    result: SearchResult,
    *,
    name: str,
    validated: Validated | None = None,
) -> SearchRecord:
    """Keep `result` among the finished searches, from which plans by the search's method are answered.

    `conversations` are the calibration set, `name` is its name. `validated` is what the best configurations are worth
    elsewhere, and so what their plans predict; an equal search that was kept without it is replaced.
    """
    validation = None
    if validated is not None:
        validation = {
            "data": validated.data,
            "id": validated.calibration_id,
            "metrics": [metrics.to_dict() for metrics in validated.metrics],
            "dense": validated.dense.to_dict(),
        }
    return repository.record_search(
        model_id,
        {"data": name, "conversations": len(conversations), "search": settings.to_dict()},
        _outcome(result, calibration_id(conversations)) | _pricing(repository, model_id, settings, result),
        space=settings.space(repository.get_model(model_id).anatomy),
        validation=validation,
    )


def _pricing(repository: Repository, model_id: str, settings: SearchSettings, result: SearchResult) -> dict[str, Any]:
    """What targets of latency were priced by; nothing where the device was measured anew since they were searched."""
    anatomy = repository.get_model(model_id).anatomy
    latency = priced(repository, anatomy, settings.latency)
    if settings.latency is None or latency is None:
        return {}
    dense_ns = LatencyPrice(anatomy, latency).total
    if any(target.latency is not None and target.latency.dense_ns != dense_ns for target in result.targets):
        return {}
    profile = DeviceFinder(repository).find(settings.latency.device).profile_sha256
    return {"latency": {"source": latency.source.value, "description": latency.description, "profile": profile}}


def _outcome(result: SearchResult, calibration: str) -> dict[str, Any]:
    """The result document of a finished search, as `service.finished_searches` reads it."""
    return {"search": result.to_dict(), "calibration_id": calibration}
