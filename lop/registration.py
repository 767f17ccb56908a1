"""Registering a model: its anatomy, and the ranking of its channels on the user's own conversations."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lop.compute import load_for_compute
from pruning.conversations import MIN_ANSWERS, Conversation, load_conversations
from pruning.errors import ConflictError, InputError
from storage.contract import Repository
from storage.records import ModelRecord

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
    on_batch: Callable[[int, int], None] | None = None,
) -> ModelRecord:
    """Rank the channels of the checkpoint in `folder` on `conversations` and register it as `model_id`.

    `on_batch(done, total)` is told of progress.

    Raises:
        CheckpointError, UnsupportedModelError, DatasetError: before anything is stored.
        ConflictError: `model_id` is registered with other weights or another ranking.
    """
    from pruning.anatomy_reader import read_anatomy
    from pruning.batches import make_batches
    from pruning.checkpoint import load_processor
    from pruning.headers import weights_sha256
    from pruning.importance import channel_scores
    from pruning.ranking import Ranking

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
    batches = make_batches(conversations, load_processor(folder))
    scores = channel_scores(load_for_compute(folder), batches, on_batch=on_batch)
    ranking = Ranking.from_scores(anatomy, scores)
    sha256 = repository.put_artifact(ranking.to_bytes(), "application/octet-stream")
    return repository.add_model(
        ModelRecord(
            id=model_id,
            anatomy=anatomy,
            weights_sha256=digest,
            ranking_sha256=sha256,
            path=str(folder),
            created_at=datetime.now(UTC),
        )
    )
