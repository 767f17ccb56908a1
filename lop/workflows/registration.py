"""Registering a model: its anatomy, its statistics on the user's own conversations, and the ranking of its units."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pruning.data.conversations import MIN_ANSWERS, Conversation, calibration_id, load_conversations
from pruning.errors import ConflictError, InputError, NotFoundError
from pruning.measuring.criterion import Criterion
from service.names import check_new_id
from storage.contract import Registry
from storage.records import BINARY, WEIGHTS, ModelRecord, RankingOrigin

if TYPE_CHECKING:
    from pruning.anatomy.anatomy import ModelAnatomy
    from pruning.planning.ranking import Ranking

Progress = Callable[[int, int], None]
"""Told of progress as (done, total)."""

MODEL_ID_PATTERN = r"[A-Za-z0-9._/-]{1,200}"


def read_conversations(path: str | Path, limit: int | None = None) -> tuple[list[Conversation], str | None]:
    """The first `limit` conversations of a file, and a warning if they are too few to tell channels apart."""
    conversations = load_conversations(path, limit)
    answers = sum(len(c.turns) for c in conversations)
    if answers >= MIN_ANSWERS:
        return conversations, None
    return conversations, (f"{path} has {answers} answers; below {MIN_ANSWERS}, rankings and scores are mostly noise")


def register_model(
    repository: Registry,
    model_id: str,
    folder: str | Path,
    conversations: Sequence[Conversation],
    *,
    name: str = "calibration",
    criterion: Criterion = Criterion.ACTIVATIONS,
    reconstructs: bool = False,
    work: Path | None = None,
    on_bytes: Progress | None = None,
    on_batch: Progress | None = None,
    on_layer: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> ModelRecord:
    """Rank channels and KV groups of the checkpoint in `folder` on `conversations` and register it as `model_id`.

    One forward pass over the conversations, one decoder layer at a time, gives the statistics of the `criterion`, which
    are stored, and the ranking follows from them. `name` is the calibration set's; `on_bytes(done, total)` is told how
    much of the files was read to tell this checkpoint from others, then `on_batch(done, total)` of the pass, and of an
    elimination `on_layer(done, total)`, whose sums lie in `work` (`measure_second_order`). Registering an equal model
    again measures nothing. With `reconstructs`, samples, predictors and plans are of models whose projections out of
    what is cut are solved anew on the conversations, and this machine keeps the products for it (`products_folder`).
    `on_warning` is told where second-order products are of fewer tokens than a projection has inputs.

    Raises:
        CheckpointError, UnsupportedModelError, DatasetError: before anything is stored.
        ConflictError: `model_id` is registered with other weights or another ranking; before anything is measured where
            it is known what it was ranked by, and else the statistics are kept.
    """
    from lop.workflows.measuring import (
        find_statistics,
        measure_activations,
        measure_second_order,
        record_calibration,
        store_statistics,
    )
    from lop.workflows.products import measure_products, products_folder
    from pruning.measuring.importance import ranking_of
    from pruning.measuring.statistics import ModelStatistics, StatisticsKind

    used = calibration_id(conversations)
    eliminates = criterion is Criterion.ELIMINATION
    kind = StatisticsKind.SECOND_ORDER if eliminates else StatisticsKind.ACTIVATIONS
    origin = RankingOrigin(kind.value, used, reconstructs)
    candidate = _Candidate.read(repository, model_id, Path(folder), on_bytes)
    if reconstructs:
        candidate.check_not_ranked_otherwise(repository, origin)
        work = products_folder(candidate.weights_sha256, used)
        of = (candidate.anatomy.fingerprint, candidate.weights_sha256)
        measure_products(candidate.folder, *of, conversations, on_batch=on_batch, on_warning=on_warning)
    stored = find_statistics(repository, model_id, kind, used)
    if stored is not None:
        if candidate.taken is not None and candidate.taken.ranking_origin is not None:
            candidate.check_not_ranked_otherwise(repository, origin)  # the same statistics, but for reconstruction
        statistics = ModelStatistics.from_bytes(repository.get_artifact(stored.sha256).content)
        return candidate.register(repository, ranking_of(statistics, candidate.anatomy), origin)
    candidate.check_not_ranked_otherwise(repository, origin)
    if eliminates:
        statistics = measure_second_order(
            candidate.folder,
            candidate.weights_sha256,
            conversations,
            work=work,
            on_batch=on_batch,
            on_layer=on_layer,
            on_warning=None if reconstructs else on_warning,  # of the same products it was told above
        )
    else:
        statistics = measure_activations(candidate.folder, conversations, on_batch=on_batch)

    def store() -> None:
        store_statistics(repository, model_id, statistics, record_calibration(repository, conversations, name))

    if candidate.taken is not None:
        store()  # first: what was measured is of use even if the ranking turns out to be another one
    record = candidate.register(repository, ranking_of(statistics, candidate.anatomy), origin)
    if candidate.taken is None:
        store()
    return record


def register_by_weights(
    repository: Registry,
    model_id: str,
    folder: str | Path,
    *,
    on_bytes: Progress | None = None,
    on_rank: Progress | None = None,
) -> ModelRecord:
    """Rank channels and KV groups of the checkpoint in `folder` by its weights alone and register it as `model_id`.

    Needs no data and builds no model; the model has no statistics then. `on_bytes(done, total)` is told how much of the
    files was read to tell this checkpoint from others, then `on_rank(done, total)` of what is ranked by.

    Raises as `register_model`.
    """
    from pruning.measuring.weight_importance import rank_by_weights

    candidate = _Candidate.read(repository, model_id, Path(folder), on_bytes)
    origin = RankingOrigin(WEIGHTS)
    if candidate.taken is not None and candidate.taken.ranking_origin is not None:
        candidate.check_not_ranked_otherwise(repository, origin)
    ranking = rank_by_weights(candidate.folder, candidate.anatomy, on_bytes=on_rank)
    return candidate.register(repository, ranking, origin)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A checkpoint that may be registered; `taken` is what its id stands for already, which is the same checkpoint."""

    model_id: str
    folder: Path
    anatomy: "ModelAnatomy"
    weights_sha256: str
    taken: ModelRecord | None

    @classmethod
    def read(cls, repository: Registry, model_id: str, folder: Path, on_bytes: Progress | None) -> Self:
        """Raises InputError for an id that is none, ConflictError if it stands for another checkpoint."""
        from pruning.checkpoints.anatomy_reader import read_anatomy
        from pruning.checkpoints.headers import weights_sha256

        if not re.fullmatch(MODEL_ID_PATTERN, model_id):
            raise InputError(
                "a model's id is 1 to 200 letters, digits and . _ - /",
                values=repr(model_id),
                remedy="Choose another id",
            )
        try:
            taken = repository.get_model(model_id)
        except NotFoundError:
            taken = None
            check_new_id(model_id)  # what an earlier version registered stays what it is
        folder = folder.resolve()
        anatomy = read_anatomy(folder)
        digest = None
        if taken is None or taken.anatomy == anatomy:
            digest = weights_sha256(folder, on_bytes=on_bytes)
        if digest is None or (taken is not None and taken.weights_sha256 != digest):
            raise ConflictError(
                "an id stands for one checkpoint for ever",
                values=f"{model_id!r} is registered with other weights, from {taken.path if taken else folder}",
                remedy="Choose another id",
            )
        return cls(model_id, folder, anatomy, digest, taken)

    def check_not_ranked_otherwise(self, repository: Registry, origin: RankingOrigin) -> None:
        """Raises ConflictError if the id is taken by a model that was ranked by anything but `origin`.

        A model of which that is not known (it was registered before there were statistics) may be measured anew.
        """
        if self.taken is None:
            return
        found = self.taken.ranking_origin or self._find_origin(repository)
        if found == origin or (found is None and not origin.reconstructs):
            return
        how = "by its weights alone" if found is not None else "by a version that did not note how"
        if found is not None and found.calibration_id is not None:
            how = f"by {found.kind} statistics"
            if found.kind == origin.kind:
                how = "on other conversations" if found.calibration_id != origin.calibration_id else "on these"
            with suppress(NotFoundError):  # the registration was stopped before they were noted
                how += f", {repository.get_calibration(found.calibration_id).name}"
            if found.reconstructs != origin.reconstructs:
                how += ", with reconstruction" if found.reconstructs else ", without reconstruction"
        raise ConflictError(
            "a registered model keeps its ranking",
            values=f"{self.model_id!r} was ranked {how}",
            remedy=f"Measure statistics with `lop model measure {self.model_id} --data FILE`, or choose another id",
        )

    def _find_origin(self, repository: Registry) -> RankingOrigin | None:
        """What gives the model's ranking again: for models that were registered before their origin was noted."""
        from pruning.measuring.importance import ranking_of
        from pruning.measuring.statistics import ModelStatistics, StatisticsKind
        from pruning.measuring.weight_importance import rank_by_weights
        from pruning.planning.ranking import Ranking

        assert self.taken is not None
        known = Ranking.from_bytes(repository.get_artifact(self.taken.ranking_sha256).content)
        for record in reversed(repository.list_statistics(self.model_id)):
            if record.kind == StatisticsKind.ACTIVATIONS:
                statistics = ModelStatistics.from_bytes(repository.get_artifact(record.sha256).content)
                if known.agrees_with(ranking_of(statistics, self.anatomy)):
                    return RankingOrigin(record.kind, record.calibration_id)
        return RankingOrigin(WEIGHTS) if known.agrees_with(rank_by_weights(self.folder, self.anatomy)) else None

    def register(self, repository: Registry, ranking: "Ranking", origin: RankingOrigin) -> ModelRecord:
        """Store the model with its ranking; raises ConflictError if it is registered with another one."""
        from pruning.planning.ranking import Ranking

        ranking_sha256 = None
        if self.taken is not None:
            # One that an earlier version registered orders no groups; it stays as it is.
            known = Ranking.from_bytes(repository.get_artifact(self.taken.ranking_sha256).content)
            ranking_sha256 = self.taken.ranking_sha256 if known.agrees_with(ranking) else None
        return repository.add_model(
            ModelRecord(
                id=self.model_id,
                anatomy=self.anatomy,
                weights_sha256=self.weights_sha256,
                ranking_sha256=ranking_sha256 or repository.put_artifact(ranking.to_bytes(), BINARY),
                path=str(self.folder),
                created_at=datetime.now(UTC),
                ranking_origin=origin,
            )
        )
