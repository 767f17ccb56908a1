"""Running a search: the engine that evaluates, the calibration set's record, and the search over both."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.memo import MemoisedEvaluator
from lop.workflows.engines import LOCAL_ENGINE, EngineOptions, EvaluatorRecipe, open_engine
from lop.workflows.measuring import record_calibration
from lop.workflows.validating import Validated
from mcts.progress import Progress, silent
from mcts.result import SearchResult
from mcts.settings import SearchMethod, SearchSettings
from pruning.anatomy.architecture import DENSE
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.errors import InputError
from pruning.planning.ranking import Ranking
from pruning.planning.space import Space
from storage.contract import Repository
from storage.records import SearchRecord

DENSE_SOURCE = "dense"
"""`source` of the sample that is the dense model itself."""

_logger = logging.getLogger("lop.searching")


def search_model(
    repository: Repository,
    model_id: str,
    conversations: list[Conversation],
    settings: SearchSettings,
    *,
    name: str,
    progress: Progress = silent,
    engine: EngineOptions = LOCAL_ENGINE,
    record: bool = True,
) -> SearchResult:
    """Search `model_id` on calibration `conversations`; every sample is stored, so a killed search resumes.

    The engine changes how long it takes, never the result. With `record`, the result is kept among the finished
    searches by `record_result`; a queued search has its row there already.

    Raises:
        NotFoundError, InfeasibleTargetError: before the model is loaded, or Ray started.
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
    settings.resolve_targets(model.anatomy)
    Ranking.from_bytes(ranking).check_space(settings.space(model.anatomy))
    recipe = EvaluatorRecipe.of(model, ranking, conversations)
    leaves = settings.parallel_leaves if settings.method is SearchMethod.MCTS else None
    with open_engine(recipe, engine, parallel_leaves=leaves) as evaluate:
        result = run_search(repository, model_id, calibration.id, evaluate, settings, progress)
        # What the dense model itself is worth there, by which reports choose: a scan has stored it, others have not.
        memo = MemoisedEvaluator(repository, model_id, model.ranking_sha256, calibration.id, evaluate, DENSE_SOURCE)
        (dense,) = memo([DENSE])
    result = result.cross_validated(dense)
    if record:
        record_result(repository, model_id, conversations, settings, result, name=name)
    return result


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
        _outcome(result, calibration_id(conversations)),
        space=settings.space(repository.get_model(model_id).anatomy),
        validation=validation,
    )


def _outcome(result: SearchResult, calibration: str) -> dict[str, Any]:
    """The result document of a finished search, as `service.finished_searches` reads it."""
    return {"search": result.to_dict(), "calibration_id": calibration}


def search_request(data: str | Path, conversations: int | None, settings: SearchSettings) -> dict[str, Any]:
    """The JSON document of a queued search."""
    return {"data": str(Path(data).resolve()), "conversations": conversations, "search": settings.to_dict()}


def run_queued(
    repository: Repository,
    search: SearchRecord,
    progress: Progress = silent,
    *,
    engine: EngineOptions = LOCAL_ENGINE,
) -> dict[str, Any]:
    """Run a search that was queued, and train the model's predictor of that space on what is known then.

    What was found is not lost where there is too little to train on: the outcome then says why, not which predictor.
    Raises InputError if its settings are none that this version knows or its space is not what they say, and what
    `search_model` raises.
    """
    from lop.workflows.training import train_model
    from policy_model.training import TrainingSettings

    document = search.settings
    try:
        data, limit = str(document["data"]), document["conversations"]
        settings = SearchSettings.from_dict(document["search"])
    except (KeyError, TypeError) as error:
        raise InputError("a queued search names data, conversations and search settings", values=repr(error)) from error
    if search.space is not None:
        stored, own = Space.from_document(search.space), settings.space(repository.get_model(search.model_id).anatomy)
        if stored.document() != own.document():
            raise InputError(
                "a queued search is stored with the space that this version makes of its settings",
                values=f"{stored.num_decisions} decisions of {', '.join(map(str, sorted({*stored.counts.tolist()})))} "
                f"options for num_levels={settings.num_levels}, round_to={settings.round_to}",
                remedy="Queue it again, or run it on a `lop worker` of the version that queued it",
            )
    conversations = load_conversations(data, limit)
    result = search_model(
        repository,
        search.model_id,
        conversations,
        settings,
        name=Path(data).name,
        progress=progress,
        engine=engine,
        record=False,
    )
    calibration = calibration_id(conversations)
    levels, round_to = settings.num_levels, settings.round_to
    training = TrainingSettings(num_levels=levels, round_to=round_to, axes=settings.axes, seed=settings.seed)
    budgets = [target.budget for target in result.targets]
    outcome = _outcome(result, calibration)
    try:
        predictor = train_model(repository, search.model_id, training, calibration_id=calibration, budgets=budgets)
    except InputError as error:
        _logger.warning("no predictor is trained after search %s: %s", search.id, error)
        return outcome | {"not_trained": str(error)}
    return outcome | {"predictor": predictor.id}
