"""Registering a model: its anatomy, its statistics on the user's own conversations, and the ranking of its channels."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lop.compute import load_for_compute
from pruning.conversations import MIN_ANSWERS, Conversation, calibration_id, load_conversations
from pruning.errors import ConflictError, InputError
from storage.contract import Repository
from storage.records import BINARY, ModelRecord

if TYPE_CHECKING:
    from pruning.statistics import ModelStatistics

MODEL_ID_PATTERN = r"[A-Za-z0-9._/-]{1,200}"


def read_conversations(path: str | Path, limit: int | None = None) -> tuple[list[Conversation], str | None]:
    """The first `limit` conversations of a file, and a warning if they are too few to tell channels apart."""
    conversations = load_conversations(path)[:limit]
    answers = sum(len(c.turns) for c in conversations)
    if answers >= MIN_ANSWERS:
        return conversations, None
    return conversations, (f"{path} has {answers} answers; below {MIN_ANSWERS}, rankings and scores are mostly noise")


def register_model(
    repository: Repository,
    model_id: str,
    folder: str | Path,
    conversations: list[Conversation],
    *,
    name: str = "calibration",
    on_batch: Callable[[int, int], None] | None = None,
) -> ModelRecord:
    """Rank the channels of the checkpoint in `folder` on `conversations` and register it as `model_id`.

    One forward pass over the conversations gives the activation statistics, which are stored, and the ranking follows
    from them. `name` is the calibration set's; `on_batch(done, total)` is told of progress. Registering an equal model
    again measures nothing.

    Raises:
        CheckpointError, UnsupportedModelError, DatasetError: before anything is stored.
        ConflictError: `model_id` is registered with other weights or another ranking.
    """
    from lop.measuring import find_statistics, record_calibration, store_statistics
    from pruning.anatomy_reader import read_anatomy
    from pruning.headers import weights_sha256
    from pruning.importance import channel_scores
    from pruning.ranking import Ranking
    from pruning.statistics import ModelStatistics, StatisticsKind

    if not re.fullmatch(MODEL_ID_PATTERN, model_id):
        raise InputError(
            "a model's id is 1 to 200 letters, digits and . _ - /", values=repr(model_id), remedy="Choose another id"
        )
    folder = Path(folder).resolve()
    anatomy = read_anatomy(folder)
    digest = weights_sha256(folder)
    taken = next((model for model in repository.list_models() if model.id == model_id), None)
    if taken is not None and (taken.anatomy != anatomy or taken.weights_sha256 != digest):
        raise ConflictError(
            "an id stands for one checkpoint for ever",
            values=f"{model_id!r} is registered with other weights, from {taken.path}",
            remedy="Choose another id",
        )
    stored = find_statistics(repository, model_id, StatisticsKind.ACTIVATIONS, calibration_id(conversations))
    if stored is not None:
        statistics = ModelStatistics.from_bytes(repository.get_artifact(stored.sha256).content)
    else:
        statistics = _measure_activations(folder, conversations, on_batch)
    ranking = Ranking.from_scores(anatomy, channel_scores(statistics))
    record = repository.add_model(
        ModelRecord(
            id=model_id,
            anatomy=anatomy,
            weights_sha256=digest,
            ranking_sha256=repository.put_artifact(ranking.to_bytes(), BINARY),
            path=str(folder),
            created_at=datetime.now(UTC),
        )
    )
    if stored is None:
        store_statistics(repository, model_id, statistics, record_calibration(repository, conversations, name))
    return record


def _measure_activations(
    folder: Path, conversations: list[Conversation], on_batch: Callable[[int, int], None] | None
) -> "ModelStatistics":
    from lop.measuring import RECIPES
    from pruning.batches import make_batches
    from pruning.checkpoint import load_processor
    from pruning.statistics import StatisticsKind, measure_statistics

    kind = StatisticsKind.ACTIVATIONS
    batches = make_batches(conversations, load_processor(folder), batch_size=RECIPES[kind].batch_size)
    return measure_statistics(kind, load_for_compute(folder), batches, on_batch=on_batch)
