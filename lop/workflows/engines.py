"""Where a search's evaluations run: in this process, or on the actors of a Ray cluster. The samples are the same."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from engines.local import LocalEngine
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import CheckpointError, DatasetError, FingerprintMismatchError, InputError
from storage.records import ModelRecord

if TYPE_CHECKING:
    from engines.memo import EvaluateInOrder
    from pruning.anatomy.anatomy import ModelAnatomy
    from pruning.anatomy.decoder_layer import TensorSpec
    from pruning.measuring.evaluation import ConfigurationEvaluator
    from pruning.measuring.masked_weights import MaskedWeights


class Engine(StrEnum):
    """What runs the evaluations."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Where evaluations run.

    Attributes:
        engine: `local` is this process; `ray` one actor a device.
        address: of the Ray cluster to join: "auto", "host:port" or "ray://host:port". None: this machine alone.
        actors: how many actors; None: one a GPU if the cluster has any, otherwise one a CPU core as far as the nodes'
            memory goes.
        cache_gib: dense probabilities and hidden states that each evaluator keeps, at most; None: a quarter of the
            model's size, or half a GiB if that is more.
    """

    engine: Engine = Engine.LOCAL
    address: str | None = None
    actors: int | None = None
    cache_gib: float | None = None

    def __post_init__(self) -> None:
        if self.cache_gib is not None and not 0.0 <= self.cache_gib < float("inf"):
            raise InputError("a cache bound is a number of GiB, 0 or more", values=str(self.cache_gib))
        if self.engine is Engine.LOCAL and (self.address is not None or self.actors is not None):
            raise InputError(
                "an address and a number of actors are for Ray",
                values=f"engine {self.engine}, address {self.address}, actors {self.actors}",
                remedy="Choose --engine ray, or leave them out",
            )


LOCAL_ENGINE = EngineOptions()

PROCESS_BYTES = 2**30
"""An evaluator's process without weights and kept hidden states: libraries (0.6 GiB), activations."""


@dataclass(frozen=True)
class EvaluatorRecipe:
    """What an evaluator is built from, here or on another machine: paths, which must be readable there, and the rest.

    Attributes:
        model: its checkpoint is read from `path`.
        ranking: the file that `model.ranking_sha256` names.
        conversations: image paths are absolute.
        calibration_id: what the conversations and their images were when the search began.
        cache_bytes: bound of what an evaluator keeps (`ConfigurationEvaluator`); None: its default. Changes no number.
        has_bits: whether weights in fewer bits are scored, too. They are copies, beside the model's own.
        squares: of the dense model's inputs (`pruning.cutting.rewriting.dense_squares`), where weights with zeros are
            scored, too; those are copies as well.
    """

    model: ModelRecord
    ranking: bytes
    conversations: tuple[Conversation, ...]
    calibration_id: str
    cache_bytes: int | None = None
    has_bits: bool = False
    squares: bytes | None = None

    @classmethod
    def of(
        cls,
        model: ModelRecord,
        ranking: bytes,
        conversations: Sequence[Conversation],
        *,
        has_bits: bool = False,
        squares: bytes | None = None,
    ) -> "EvaluatorRecipe":
        """The recipe for a registered model and conversations that can be read here."""
        located = tuple(
            conversation
            if conversation.image is None
            else dataclasses.replace(conversation, image=conversation.image.absolute())
            for conversation in conversations
        )
        return cls(model, ranking, located, calibration_id(located), has_bits=has_bits, squares=squares)

    def __call__(self) -> "ConfigurationEvaluator":
        """Load the model and prepare the conversations: the expensive part.

        Raises:
            CheckpointError, DatasetError: the checkpoint's folder or an image cannot be read on this machine, or the
                images are others.
            FingerprintMismatchError: the checkpoint changed since it was registered.
            InputError: this machine lacks the products that reconstruction solves from.
        """
        from lop.workflows.compute import load_for_compute
        from lop.workflows.products import solver_of
        from pruning.anatomy.dtypes import torch_dtype
        from pruning.checkpoints.loading import load_processor
        from pruning.data.batches import make_batches
        from pruning.data.folds import fold_numbers
        from pruning.measuring.evaluation import ConfigurationEvaluator
        from pruning.measuring.rounded_weights import RoundedWeights
        from pruning.planning.ranking import Ranking

        self._check_files()
        solver = solver_of(self.model)
        folder = Path(self.model.path)
        batches = make_batches(self.conversations, load_processor(folder))
        return ConfigurationEvaluator(
            load_for_compute(folder),
            batches,
            Ranking.from_bytes(self.ranking),
            folds=fold_numbers(self.conversations),
            cache_bytes=self.cache_bytes,
            solver=solver,
            rounder=RoundedWeights(torch_dtype(self.model.anatomy.dtype)) if self.has_bits else None,
            masker=None if self.squares is None else self._masker(self.squares),
        )

    def _masker(self, squares: bytes) -> "MaskedWeights":
        from pruning.cutting.rewriting.blocks import language_blocks
        from pruning.cutting.rewriting.dense_squares import squares_by_site
        from pruning.measuring.masked_weights import MaskedWeights

        anatomy = self.model.anatomy
        return MaskedWeights(squares_by_site(anatomy, squares, language_blocks(anatomy)))

    def _check_files(self) -> None:
        if not Path(self.model.path).is_dir():
            raise CheckpointError(
                "the checkpoint's folder must be readable at this path on every machine that evaluates",
                values=self.model.path,
                remedy="Mount or copy it there",
            )
        check_weights(self.model)
        try:
            found = calibration_id(self.conversations)
        except OSError as error:
            raise DatasetError(
                "images must be readable at the same path on every machine that evaluates",
                values=f"{error.filename}: {error.strerror}",
                remedy="Mount or copy the folder of the calibration file there",
            ) from error
        if found != self.calibration_id:
            raise DatasetError(
                "the calibration set must be the same on every machine that evaluates",
                values=f"sha256 {found[:12]} instead of {self.calibration_id[:12]}",
                remedy="Copy the images anew",
            )


@contextmanager
def open_engine(
    recipe: EvaluatorRecipe, options: EngineOptions, *, parallel_leaves: int | None = None
) -> "Iterator[EvaluateInOrder]":
    """What evaluates with an evaluator of `recipe`; actors, and a Ray that was started for them, end with the block.

    Args:
        recipe: of the evaluator.
        options: where it runs.
        parallel_leaves: configurations that the search has measured at once; more actors than that are warned of.

    Raises:
        InputError: an address that is none.
        MissingExtraError: Ray is not installed.
    """
    if options.cache_gib is not None:
        recipe = dataclasses.replace(recipe, cache_bytes=int(options.cache_gib * 2**30))
    if options.engine is Engine.LOCAL:
        yield LocalEngine(recipe)
        return
    from engines.ray.engine import RayEngine
    from lop.console.console import warn

    def warn_of_idle(actors: int) -> None:
        if parallel_leaves is not None and actors > parallel_leaves:
            warn(
                f"{actors} actors, but the search has {parallel_leaves} configurations measured at once: after the "
                f"one-layer scan the others are idle. Give --parallel-leaves {actors}, or fewer --actors"
            )

    device = os.environ.get("LOP_TORCH_DEVICE", "")
    use_gpus = not device or device.startswith("cuda")  # which one, Ray decides
    with RayEngine(
        recipe,
        address=options.address,
        num_actors=options.actors,
        use_gpus=use_gpus,
        memory_bytes=evaluator_memory_bytes(recipe),
        on_open=warn_of_idle,
        environment={} if use_gpus else {"LOP_TORCH_DEVICE": device},
    ) as engine:
        yield engine


def evaluator_memory_bytes(recipe: EvaluatorRecipe) -> int:
    """What a process with an evaluator on a CPU takes, about: weights, in float32, what is kept, and the rest.

    Where weights in fewer bits or with zeros are scored, all of the decoder's may be, at once: then as much as they
    take comes on top, and what is kept from one architecture to the next, which may be of others. Where weights are
    solved anew, the widest projection may be solved beside all that is kept.

    From what was registered: the checkpoint need not be on this machine.
    """
    from pruning.anatomy.packed_weights import is_packed
    from pruning.forward.prefix_cache import default_cache_bytes
    from pruning.measuring.masked_weights import DEFAULT_MASK_BYTES
    from pruning.measuring.rounded_weights import DEFAULT_ROUNDED_BYTES
    from pruning.measuring.solved_outputs import DEFAULT_SOLVED_BYTES, solving_bytes

    tensors = recipe.model.anatomy.tensors
    weights = sum(_computed_bytes(x) for x in tensors)
    made_anew = 0
    if recipe.has_bits or recipe.squares is not None:
        of_kept = DEFAULT_ROUNDED_BYTES if recipe.has_bits else DEFAULT_MASK_BYTES
        made_anew = of_kept + sum(_computed_bytes(x) for x in tensors if is_packed(x))
    kept = default_cache_bytes(weights) if recipe.cache_bytes is None else recipe.cache_bytes
    solved = 0
    if recipe.model.reconstructed_on is not None:
        solved = DEFAULT_SOLVED_BYTES + max(solving_bytes(*shape) for shape in _solved_shapes(recipe.model.anatomy))
    return weights + made_anew + kept + solved + PROCESS_BYTES


def _solved_shapes(anatomy: "ModelAnatomy") -> list[tuple[int, int]]:
    """[D, A] of the projections out of all sub-layers."""
    from pruning.anatomy.families import FAMILIES
    from pruning.anatomy.tensor_roles import decoder_tensor

    family = FAMILIES[anatomy.text_model_type]
    names = {f"{name}.weight" for name in (family.attention_out, family.ffn_out)}
    places = ((decoder_tensor(x.name), x.shape) for x in anatomy.tensors)
    return [(shape[0], shape[1]) for place, shape in places if place is not None and place[1] in names]


def _computed_bytes(tensor: "TensorSpec") -> int:
    """In float32, or the tensor's own type if that is wider."""
    from pruning.checkpoints.safetensors_layout import tensor_bytes

    return max(tensor_bytes(tensor.shape, tensor.dtype), tensor_bytes(tensor.shape, "F32"))


def check_engine(options: EngineOptions) -> None:
    """Raises MissingExtraError or InputError, as `open_engine` would, for what can be known before there is a model."""
    if options.engine is Engine.RAY:
        import engines.ray.engine  # noqa: F401 (raises if Ray is not installed)
        from engines.ray.cluster_address import resolve_address

        resolve_address(options.address)


def squares_for(
    model: ModelRecord,
    conversations: Sequence[Conversation],
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> bytes:
    """By what a search of densities on `conversations` zeroes weights of `model`: one pass of the dense model.

    `on_batch(done, total)` is told of progress, and may raise to stop it.

    Raises FingerprintMismatchError as `check_weights`, and what `measure_input_squares` raises.
    """
    from lop.workflows.measuring import measure_input_squares

    check_weights(model)
    return measure_input_squares(Path(model.path), conversations, on_batch=on_batch)


def check_weights(model: ModelRecord) -> None:
    """Raises FingerprintMismatchError if the checkpoint's files changed since the model was registered."""
    from pruning.checkpoints.headers import weights_sha256

    found = weights_sha256(Path(model.path))
    if found != model.weights_sha256:
        raise FingerprintMismatchError(
            "a registered checkpoint must not change: its samples would not fit together",
            values=f"{model.path}: sha256 {found[:12]}, registered {model.weights_sha256[:12]}",
            remedy="Register the changed checkpoint under a new id with `lop model add`",
        )
