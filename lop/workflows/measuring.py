"""Measuring statistics of registered models, and storing them: what methods without a search decide from."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lop.workflows.compute import compute_device, load_for_compute, warn_of_dtype
from pruning.checkpoints.finite_weights import check_finite_weights
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import CheckpointError, InputError
from pruning.measuring.statistics import ModelStatistics, StatisticsKind, measure_checkpoint, measure_statistics
from storage.contract import Catalogue, Registry
from storage.records import BINARY, CalibrationRecord, StatisticsRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.data.batches import Batch, BatchStream
    from pruning.measuring.second_order import SecondOrderStore


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind is measured unless the user says otherwise.

    Attributes:
        num_conversations: the first so many of the user's file; None: all of them.
        batch_size: conversations a batch.
    """

    num_conversations: int | None
    batch_size: int


RECIPES: dict[StatisticsKind, Recipe] = {
    StatisticsKind.ACTIVATIONS: Recipe(num_conversations=None, batch_size=16),
    # LLM-Pruner's 10 samples (arXiv 2305.11627); one at a time, since a backward pass keeps all activations.
    StatisticsKind.GRADIENTS: Recipe(num_conversations=10, batch_size=1),
    # ECoFLaP's 32 samples in batches of 8 (arXiv 2310.02998): one perturbation a matrix and batch.
    StatisticsKind.ZEROTH_ORDER: Recipe(num_conversations=32, batch_size=8),
    StatisticsKind.SECOND_ORDER: Recipe(num_conversations=None, batch_size=16),
}

OF_METHODS: tuple[StatisticsKind, ...] = tuple(
    kind for kind in StatisticsKind if kind is not StatisticsKind.SECOND_ORDER
)
"""Kinds that methods decide from. By second-order statistics models are ranked (`lop model add --criterion`)."""


MAX_BATCH_TOKENS = 2**12
"""Tokens of a batch where a layer is in memory at a time, image tokens and padding included: a layer of LLaVA-1.5-7B
then works on 0.8 GB in float32, in which most CPUs compute it."""


class StatisticsMeasurer:
    """Measures statistics of one registered model.

    Activations are measured from its files, a layer at a time; for the other kinds it is loaded, once.

    Raises NotFoundError if there is no such model.
    """

    def __init__(self, repository: Registry, model_id: str) -> None:
        self._repository = repository
        self._record = repository.get_model(model_id)
        self._is_checked = False
        self._model: PreTrainedModel | None = None

    def missing(self) -> list[StatisticsKind]:
        """The kinds that methods decide from, and of which the model has no statistics at all."""
        latest = self._repository.latest_statistics
        return [kind for kind in OF_METHODS if latest(self._record.id, kind) is None]

    def measure(
        self,
        kind: StatisticsKind,
        conversations: Sequence[Conversation],
        *,
        name: str,
        num_conversations: int | None = None,
        on_batch: Callable[[int, int], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> StatisticsRecord:
        """The statistics of `kind` on the first `num_conversations` (default: the kind's recipe), measured if need be.

        `name` is the calibration set's; `on_batch(done, total)` is told of progress, `on_warning` of too few tokens.

        Raises:
            FingerprintMismatchError: the checkpoint changed since it was registered.
            CheckpointError, DatasetError: the checkpoint or the conversations cannot be used.
        """
        recipe = RECIPES[kind]
        used = list(conversations[: num_conversations or recipe.num_conversations])
        stored = find_statistics(self._repository, self._record.id, kind, calibration_id(used))
        if stored is not None:
            return stored
        self._check_weights()
        if kind is StatisticsKind.ACTIVATIONS:
            statistics = measure_activations(Path(self._record.path), used, on_batch=on_batch)
        elif kind is StatisticsKind.SECOND_ORDER:
            weights = self._record.weights_sha256
            statistics = measure_second_order(
                Path(self._record.path), weights, used, on_batch=on_batch, on_warning=on_warning
            )
        else:
            batches = self._batches(used, recipe.batch_size)
            try:
                statistics = measure_statistics(kind, self._load(), batches, on_batch=on_batch)
            except CheckpointError:
                check_finite_weights(self._record.path)  # the likeliest reason why numbers are not finite
                raise
        return store_statistics(
            self._repository, self._record.id, statistics, record_calibration(self._repository, used, name)
        )

    def _check_weights(self) -> None:
        from lop.workflows.engines import check_weights

        if not self._is_checked:
            check_weights(self._record)
            self._is_checked = True

    def _load(self) -> "PreTrainedModel":
        if self._model is None:
            self._model = load_for_compute(self._record.path)
        return self._model

    def _batches(self, conversations: Sequence[Conversation], batch_size: int) -> "list[Batch]":
        from pruning.checkpoints.loading import load_processor
        from pruning.data.batches import make_batches

        return make_batches(conversations, load_processor(Path(self._record.path)), batch_size=batch_size)


def measure_activations(
    folder: Path, conversations: Sequence[Conversation], *, on_batch: Callable[[int, int], None] | None = None
) -> ModelStatistics:
    """The ACTIVATIONS of the dense checkpoint in `folder`, one decoder layer in memory at a time.

    Raises:
        InputError: torch has no such device as LOP_TORCH_DEVICE says, or the disk has no room for hidden states.
        CheckpointError, UnsupportedModelError, DatasetError: the checkpoint or the conversations cannot be used.
    """
    warn_of_dtype(folder)
    return measure_checkpoint(folder, streamed(folder, conversations), compute_device(), on_batch=on_batch)


def streamed(folder: Path, conversations: Sequence[Conversation]) -> "BatchStream":
    """Batches for passes that have a layer in memory at a time.

    Raises CheckpointError, DatasetError: the checkpoint's processor or the conversations cannot be used.
    """
    from pruning.checkpoints.loading import load_processor
    from pruning.data.batches import BatchStream

    batch_size = RECIPES[StatisticsKind.ACTIVATIONS].batch_size
    return BatchStream(conversations, load_processor(folder), batch_size=batch_size, max_tokens=MAX_BATCH_TOKENS)


def measure_second_order(
    folder: Path,
    weights_sha256: str,
    conversations: Sequence[Conversation],
    *,
    work: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_layer: Callable[[int, int], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> ModelStatistics:
    """The SECOND_ORDER statistics of the dense checkpoint in `folder`, one decoder layer in memory at a time.

    Its sums lie in the folder `work`, to be gone on with and used again. By default that is one of this checkpoint and
    calibration set among the temporary files, which goes at the end. `on_warning` is told of too few tokens.

    Raises:
        InputError: torch has no such device as LOP_TORCH_DEVICE says, there are no two conversations, `work` holds
            something else, or a disk has no room.
        CheckpointError, UnsupportedModelError, DatasetError: the checkpoint or the conversations cannot be used.
    """
    from pruning.forward.spill_folder import spill_folder
    from pruning.measuring.second_order import MeasuredOn, SecondOrderStore
    from pruning.measuring.statistics import measure_elimination

    warn_of_dtype(folder)
    used = calibration_id(conversations)
    place = work or spill_folder() / f"lop-{os.getuid()}-second-order-{weights_sha256[:16]}-{used[:16]}"
    statistics = measure_elimination(
        folder,
        streamed(folder, conversations),
        used,
        weights_sha256,
        compute_device(),
        place,
        on_batch=on_batch,
        on_layer=on_layer,
    )
    if on_warning is not None:
        store = SecondOrderStore(place, MeasuredOn(statistics.fingerprint, weights_sha256, used))
        for warning in store_warnings(store):
            on_warning(warning)
    if work is None:
        shutil.rmtree(place)
    return statistics


def store_warnings(store: "SecondOrderStore") -> list[str]:
    """What a user should know of the second-order products that were measured."""
    short = store.few_tokens()
    if short is None:
        return []
    tokens, inputs = short
    return [
        f"{tokens:,} calibration tokens for up to {inputs:,} inputs of a projection: without damping nothing could be "
        "solved, with it rankings and scores are worse than they could be. Use more conversations: some ten tokens an "
        "input"
    ]


def measure_input_squares(
    folder: Path, conversations: Sequence[Conversation], *, on_batch: Callable[[int, int], None] | None = None
) -> bytes:
    """What Wanda scores the weights of the dense checkpoint in `folder` by, one decoder layer in memory at a time.

    Raises:
        InputError: torch has no such device as LOP_TORCH_DEVICE says, or a disk has no room.
        CheckpointError, UnsupportedModelError, DatasetError: the checkpoint or the conversations cannot be used.
    """
    from pruning.checkpoints.anatomy_reader import read_anatomy
    from pruning.cutting.rewriting.blocks import language_blocks
    from pruning.cutting.rewriting.dense_squares import measure_squares
    from pruning.forward.layer_source import CheckpointLayers

    batches = streamed(folder, conversations)
    return measure_squares(
        CheckpointLayers(folder, compute_device()),
        language_blocks(read_anatomy(folder)),
        batches,
        num_rows=batches.num_rows,
        on_batch=on_batch,
    )


def kinds_of(names: Sequence[str]) -> list[StatisticsKind]:
    """The kinds of these names, each once; raises InputError for a name that is none."""
    try:
        return [StatisticsKind(name) for name in dict.fromkeys(names)]
    except ValueError as error:
        known = ", ".join(StatisticsKind)
        raise InputError("statistics are of a known kind", values=str(error), remedy=f"Known are {known}") from error


def find_statistics(
    repository: Catalogue, model_id: str, kind: StatisticsKind, calibration: str
) -> StatisticsRecord | None:
    """The stored record of exactly these statistics, if there is one; `calibration` is the set's id."""
    records = repository.list_statistics(model_id)
    return next((x for x in records if x.kind == kind and x.calibration_id == calibration), None)


def store_statistics(
    repository: Registry, model_id: str, statistics: ModelStatistics, calibration: CalibrationRecord
) -> StatisticsRecord:
    """Store statistics of a registered model and their record.

    Raises ConflictError if others of that kind and calibration set were stored meanwhile.
    """
    return repository.add_statistics(
        StatisticsRecord(
            model_id=model_id,
            kind=statistics.kind.value,
            calibration_id=calibration.id,
            sha256=repository.put_artifact(statistics.to_bytes(), BINARY),
            created_at=datetime.now(UTC),
        )
    )


def record_calibration(repository: Catalogue, conversations: Sequence[Conversation], name: str) -> CalibrationRecord:
    """The stored record of a calibration set."""
    return repository.add_calibration(
        CalibrationRecord(
            id=calibration_id(conversations),
            name=name,
            num_conversations=len(conversations),
            num_answers=sum(len(c.turns) for c in conversations),
            created_at=datetime.now(UTC),
        )
    )
