"""Running a search: the model's evaluator, the calibration set's record, and the search over both."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lop.compute import load_for_compute
from mcts.progress import Progress, silent
from mcts.result import SearchResult
from mcts.settings import SearchSettings
from pruning.conversations import Conversation, calibration_id, load_conversations
from pruning.errors import FingerprintMismatchError, InputError
from pruning.metrics import Metrics
from pruning.ranking import Ranking
from storage.contract import Repository
from storage.records import CalibrationRecord, ModelRecord, SearchRecord


class LazyEvaluator:
    """Loads the model when the first configuration has to be measured: a search that only replays needs none."""

    def __init__(self, repository: Repository, model: ModelRecord, conversations: Sequence[Conversation]) -> None:
        self._repository = repository
        self._model = model
        self._conversations = conversations
        self._evaluator: Any = None

    def __call__(self, widths: Sequence[tuple[int, ...]], /) -> list[Metrics]:
        if self._evaluator is None:
            self._evaluator = self._load()
        result: list[Metrics] = self._evaluator(widths)
        return result

    def _load(self) -> Any:
        from pruning.batches import make_batches
        from pruning.checkpoint import load_processor
        from pruning.evaluation import ConfigurationEvaluator

        folder = Path(self._model.path)
        check_weights(self._model)
        ranking = Ranking.from_bytes(self._repository.get_artifact(self._model.ranking_sha256).content)
        batches = make_batches(self._conversations, load_processor(folder))
        return ConfigurationEvaluator(load_for_compute(folder), batches, ranking)


def check_weights(model: ModelRecord) -> None:
    """Raises FingerprintMismatchError if the checkpoint's files changed since the model was registered."""
    from pruning.headers import weights_sha256

    found = weights_sha256(Path(model.path))
    if found != model.weights_sha256:
        raise FingerprintMismatchError(
            "a registered checkpoint must not change: its samples would not fit together",
            values=f"{model.path}: sha256 {found[:12]}, registered {model.weights_sha256[:12]}",
            remedy="Register the changed checkpoint under a new id with `lop model add`",
        )


def search_model(
    repository: Repository,
    model_id: str,
    conversations: list[Conversation],
    settings: SearchSettings,
    *,
    name: str,
    progress: Progress = silent,
) -> SearchResult:
    """Search `model_id` on calibration `conversations`; every sample is stored, so a killed search resumes.

    Raises:
        NotFoundError, InfeasibleTargetError: before the model is loaded.
        FingerprintMismatchError: the checkpoint changed since it was registered.
        StorageUnavailableError: the database went away; what was stored is intact.
    """
    from mcts.worker import run_search

    model = repository.get_model(model_id)
    calibration = repository.add_calibration(
        CalibrationRecord(
            id=calibration_id(conversations),
            name=name,
            num_conversations=len(conversations),
            num_answers=sum(len(c.turns) for c in conversations),
            created_at=datetime.now(UTC),
        )
    )
    evaluate = LazyEvaluator(repository, model, conversations)
    return run_search(repository, model_id, calibration.id, evaluate, settings, progress)


def search_request(data: str | Path, conversations: int | None, settings: SearchSettings) -> dict[str, Any]:
    """The JSON document of a queued search."""
    return {"data": str(Path(data).resolve()), "conversations": conversations, "search": settings.to_dict()}


def run_queued(repository: Repository, search: SearchRecord, progress: Progress = silent) -> dict[str, Any]:
    """Run a search that was queued, and train the model's predictor on what is known then.

    Raises InputError if its settings are malformed, and what `search_model` raises.
    """
    from lop.training import train_model
    from policy_model.training import TrainingSettings

    document = search.settings
    try:
        data, limit = str(document["data"]), document["conversations"]
        settings = SearchSettings.from_dict(document["search"])
    except (KeyError, TypeError) as error:
        raise InputError("a queued search names data, conversations and search settings", values=repr(error)) from error
    conversations = load_conversations(data)[:limit]
    result = search_model(repository, search.model_id, conversations, settings, name=Path(data).name, progress=progress)
    training = TrainingSettings(num_levels=settings.num_levels, round_to=settings.round_to, seed=settings.seed)
    predictor = train_model(repository, search.model_id, training, calibration_id=calibration_id(conversations))
    return {"search": result.to_dict(), "predictor": predictor.id}
