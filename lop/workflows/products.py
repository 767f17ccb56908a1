"""Where second-order products (H) are kept of models whose plans count on reconstruction: on this machine, or in a
folder that several machines share."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import InputError
from storage.records import ModelRecord

if TYPE_CHECKING:
    from pruning.measuring.second_order import SecondOrderStore
    from pruning.measuring.solved_outputs import SolvedOutputs

ROOT_VARIABLE = "LOP_SECOND_ORDER"
"""Names the folder of all products; by default lop/second-order in the user's cache."""


def products_folder(weights_sha256: str, calibration: str) -> Path:
    """The folder of the products of one checkpoint on one calibration set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get(ROOT_VARIABLE) or cache / "lop" / "second-order")
    return root / f"{weights_sha256[:16]}-{calibration[:16]}"


def measure_products(
    folder: Path,
    fingerprint: str,
    weights_sha256: str,
    conversations: Sequence[Conversation],
    *,
    on_batch: Callable[[int, int], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> None:
    """Measure what this machine lacks of the products of the checkpoint in `folder`, one decoder layer in memory.

    `on_warning` is told of too few tokens, also where nothing lacks: what will be solved is solved from them.

    Raises:
        InputError: torch has no such device as LOP_TORCH_DEVICE says, there are no two conversations, or a disk has no
            room.
        CheckpointError, DatasetError: the checkpoint or the conversations cannot be used.
    """
    from lop.workflows.compute import compute_device, warn_of_dtype
    from lop.workflows.measuring import store_warnings, streamed
    from pruning.forward.layer_source import CheckpointLayers
    from pruning.measuring.second_order import measure_second_order

    store = _store(fingerprint, weights_sha256, calibration_id(conversations))
    source = CheckpointLayers(folder, compute_device())
    if not store.is_whole(len(source.slots)):
        warn_of_dtype(folder)
        batches = streamed(folder, conversations)
        measure_second_order(source, batches, store, num_rows=batches.num_rows, on_batch=on_batch)
    if on_warning is not None:
        for warning in store_warnings(store):
            on_warning(warning)


def solver_of(model: ModelRecord) -> "SolvedOutputs | None":
    """What gives an evaluator of `model` its solved weights; None: its plans count on no reconstruction.

    Raises InputError if this machine does not have the products.
    """
    from pruning.anatomy.dtypes import torch_dtype
    from pruning.measuring.solved_outputs import SolvedOutputs

    calibration = model.reconstructed_on
    if calibration is None:
        return None
    place = products_folder(model.weights_sha256, calibration)
    store = _store(model.anatomy.fingerprint, model.weights_sha256, calibration) if place.is_dir() else None
    if store is None or not store.is_whole(model.anatomy.num_layers):
        raise InputError(
            "what is scored of a model whose plans count on reconstruction is solved from its second-order products",
            values=f"{place} does not hold all of those of {model.id!r}",
            remedy=f"Run `lop model add {model.id} ... --reconstruct` again on this machine, as it was registered; or "
            f"let {ROOT_VARIABLE} name a folder that holds them",
        )
    return SolvedOutputs(store, torch_dtype(model.anatomy.dtype))


def _store(fingerprint: str, weights_sha256: str, calibration: str) -> "SecondOrderStore":
    from pruning.measuring.second_order import MeasuredOn, SecondOrderStore

    place = products_folder(weights_sha256, calibration)
    return SecondOrderStore(place, MeasuredOn(fingerprint, weights_sha256, calibration))
