"""What a dense model shows of itself on calibration data: the numbers that allocators decide from.

Four kinds, by what they cost: one forward pass, one backward pass, forward passes with perturbed weights, or a forward
pass and an elimination of all units. A kind is measured once for a model and serves every target.

Letters: L decoder layers, W channels of a layer's FFN, x the input of its down projection, W_down its weight [D, W];
A channels of all query heads together, z the input of the attention's output projection, W_out its weight [D, A]; G KV
groups.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.errors import CheckpointError, FingerprintMismatchError, InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.data.batches import Batch, BatchStream

_METADATA_KEY = "statistics"
# One entry only: safetensors writes several in no fixed order, and equal statistics must give equal bytes.


class StatisticsKind(StrEnum):
    """A way to measure, and the arrays that come of it.

    ACTIVATIONS, one forward pass. Each layer has
        `layers.{l}.ffn_mean` [W]             mean of x over tokens
        `layers.{l}.ffn_second_moment` [W]    mean of x^2
        `layers.{l}.ffn_variance` [W]         unbiased variance of x: the fluctuation of FLAP
        `layers.{l}.down_mean_abs` [W]        mean over rows i of |W_down[i, j]|
        `layers.{l}.down_norm` [W]            ||W_down[:, j]||_2
    and, unless they were measured by a version that pruned FFNs only,
        `layers.{l}.attention_second_moment` [A]  mean of z^2
        `layers.{l}.out_norm` [A]             ||W_out[:, j]||_2
    and, unless they are of a version that knew no skipped sub-layers,
        `layers.{l}.group_contribution` [G]   what a KV group adds to the stream, relatively (`group_contributions`)
    and all layers together
        `outlier_ratio` [L]                   OWL: share of a layer's weights whose score is over M times the mean
        `block_influence` [L]                 ShortGPT: mean over tokens of 1 - cos(layer's input, its output)

    GRADIENTS, one backward pass:
        `layers.{l}.ffn_taylor` [W]           LLM-Pruner: sum of |weight x gradient| over a channel's weights

    ZEROTH_ORDER, forward passes only:
        `ffn_zeroth_order` [L]                ECoFLaP: sum of |projected gradient| over an FFN's matrices and batches

    SECOND_ORDER, one forward pass, then an elimination of all units of every layer (`pruning.measuring.elimination`):
        `layers.{l}.ffn_elimination` [W]      share of the FFN's output that is lost, after compensation, once a channel
                                              and all that go before it are gone
        `layers.{l}.group_elimination` [G]    the same of KV groups, and of attention's output
    """

    ACTIVATIONS = "activations"
    GRADIENTS = "gradients"
    ZEROTH_ORDER = "zeroth-order"
    SECOND_ORDER = "second-order"


_PER_CHANNEL: dict[StatisticsKind, tuple[str, ...]] = {
    StatisticsKind.ACTIVATIONS: ("ffn_mean", "ffn_second_moment", "ffn_variance", "down_mean_abs", "down_norm"),
    StatisticsKind.GRADIENTS: ("ffn_taylor",),
    StatisticsKind.ZEROTH_ORDER: (),
    StatisticsKind.SECOND_ORDER: ("ffn_elimination",),
}
_PER_ATTENTION_CHANNEL = ("attention_second_moment", "out_norm")
"""Of ACTIVATIONS: all of them, or none."""
_PER_GROUP = "group_contribution"
"""Of ACTIVATIONS, or absent."""
_GROUP_ELIMINATION = "group_elimination"
_PER_LAYER: dict[StatisticsKind, tuple[str, ...]] = {
    StatisticsKind.ACTIVATIONS: ("outlier_ratio", "block_influence"),
    StatisticsKind.GRADIENTS: (),
    StatisticsKind.ZEROTH_ORDER: ("ffn_zeroth_order",),
    StatisticsKind.SECOND_ORDER: (),
}


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """One kind of statistics of one dense model. Equal statistics have equal `to_bytes`.

    Attributes:
        kind: how they were measured; it says which arrays there are.
        fingerprint: of the dense model's anatomy.
        arrays: float64, by the names that `StatisticsKind` lists.
    """

    kind: StatisticsKind
    fingerprint: str
    arrays: Mapping[str, FloatArray]

    def per_layer(self, name: str) -> list[FloatArray]:
        """The arrays `layers.{l}.{name}` [L][W], in order; raises KeyError if this kind has none of that name."""
        if f"layers.0.{name}" not in self.arrays:
            raise KeyError(name)
        keys = (f"layers.{index}.{name}" for index in range(len(self.arrays)))
        return [self.arrays[key] for key in keys if key in self.arrays]

    @property
    def has_attention(self) -> bool:
        """Whether they say anything of attention heads."""
        return any(name.endswith(_PER_ATTENTION_CHANNEL) for name in self.arrays)

    @property
    def has_groups(self) -> bool:
        """Whether they say what KV groups add to the stream."""
        return any(name.endswith(_PER_GROUP) for name in self.arrays)

    def check(self, anatomy: ModelAnatomy, kind: StatisticsKind | None = None) -> None:
        """Check that these are whole statistics of that model, and of `kind` if one is given.

        Raises:
            FingerprintMismatchError: they were measured on another model.
            CheckpointError: arrays are missing, of other shapes, or not finite.
            InputError: they are of another kind.
        """
        if kind is not None and self.kind is not kind:
            raise InputError(
                f"this allocator works from statistics of kind '{kind}'",
                values=f"'{self.kind}'",
                remedy=f"Measure them: measure_statistics(StatisticsKind.{kind.name}, model, batches)",
            )
        if self.fingerprint != anatomy.fingerprint:
            raise FingerprintMismatchError(
                "statistics fit only the model that they were measured on",
                values=f"statistics {self.fingerprint[:12]}, model {anatomy.fingerprint[:12]}",
                remedy="Measure them on this model",
            )
        expected = {
            f"layers.{x.index}.{name}": (x.ffn_width,) for name in _PER_CHANNEL[self.kind] for x in anatomy.layers
        } | dict.fromkeys(_PER_LAYER[self.kind], (anatomy.num_layers,))
        if self.has_attention:
            expected |= {
                f"layers.{x.index}.{name}": (x.num_heads * x.head_dim,)
                for name in _PER_ATTENTION_CHANNEL
                for x in anatomy.layers
            }
        if self.has_groups:
            expected |= {f"layers.{x.index}.{_PER_GROUP}": (x.num_kv_groups,) for x in anatomy.layers}
        if self.kind is StatisticsKind.SECOND_ORDER:
            expected |= {f"layers.{x.index}.{_GROUP_ELIMINATION}": (x.num_kv_groups,) for x in anatomy.layers}
        found = {name: array.shape for name, array in self.arrays.items()}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            raise CheckpointError(
                f"statistics of kind '{self.kind}' are numbers for every layer and channel of the model",
                values=f"{len(wrong)} arrays are missing, too many or of another shape, first {wrong[0]}",
                remedy="Measure them again",
            )
        if infinite := self.infinite():
            raise CheckpointError(
                f"statistics of kind '{self.kind}' must be finite numbers",
                values=f"{len(infinite)} of {len(self.arrays)} arrays hold NaN or infinity, first {infinite[0]}",
                remedy="The model's activations overflow its dtype: save it as float32 or bfloat16, then measure that",
            )

    def infinite(self) -> list[str]:
        """Names of the arrays that hold NaN or infinity."""
        return sorted(name for name, array in self.arrays.items() if not np.isfinite(array).all())

    def to_bytes(self) -> bytes:
        """A safetensors file; equal statistics give equal bytes."""
        metadata = json.dumps({"fingerprint": self.fingerprint, "kind": self.kind.value}, sort_keys=True)
        tensors = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in self.arrays.items()}
        return bytes(save(tensors, metadata={_METADATA_KEY: metadata}))

    @classmethod
    def from_bytes(cls, content: bytes) -> "ModelStatistics":
        """Parse a statistics file; raises CheckpointError if it is damaged or something else."""
        try:
            arrays = load(content)
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_METADATA_KEY])
            kind, fingerprint = StatisticsKind(metadata["kind"]), str(metadata["fingerprint"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "statistics are a safetensors file of a known kind", values=str(error), remedy="Measure them again"
            ) from error
        if any(array.dtype != np.float64 for array in arrays.values()):
            raise CheckpointError("statistics are float64 arrays", values=str({str(x.dtype) for x in arrays.values()}))
        return cls(kind, fingerprint, arrays)


def measure_statistics(
    kind: StatisticsKind,
    model: "PreTrainedModel",
    batches: "Sequence[Batch]",
    *,
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> ModelStatistics:
    """Measure one kind of statistics of a dense `model` over all `batches`. The weights are afterwards as before.

    SECOND_ORDER keeps its sums in a temporary folder meanwhile; of a checkpoint, `measure_elimination` is resumable.

    The papers take 10 conversations for GRADIENTS and 32 in batches of 8 for ZEROTH_ORDER, which perturbs once for
    each matrix and batch; ACTIVATIONS are the better the more there are. Equal inputs and seeds give equal numbers.

    Args:
        seed: of the perturbations; only ZEROTH_ORDER draws any.
        on_batch: told of progress as (done, total), in steps of the kind's own.

    Raises:
        InputError: there are no batches.
        UnsupportedModelError: the language model is of no supported family, or is pruned already.
        CheckpointError: numbers are not finite.
    """
    from pruning.checkpoints.anatomy_reader import anatomy_of
    from pruning.data.batches import num_rows
    from pruning.forward.layer_source import loaded_layers
    from pruning.forward.spill_folder import spill_folder
    from pruning.measuring.activation_statistics import measure_activations
    from pruning.measuring.eliminated_units import eliminate
    from pruning.measuring.gradient_statistics import measure_gradients
    from pruning.measuring.second_order import MeasuredOn, SecondOrderStore, measure_second_order
    from pruning.measuring.zeroth_order_statistics import measure_zeroth_order

    if not batches:
        raise InputError("statistics need calibration data", values="no batches")
    anatomy = anatomy_of(model)
    model.eval()
    match kind:
        case StatisticsKind.ACTIVATIONS:
            with loaded_layers(model) as source:
                arrays = measure_activations(source, batches, num_rows=num_rows(batches), on_batch=on_batch)
        case StatisticsKind.GRADIENTS:
            arrays = measure_gradients(model, batches, on_batch=on_batch)
        case StatisticsKind.ZEROTH_ORDER:
            arrays = measure_zeroth_order(model, batches, seed=seed, on_batch=on_batch)
        case StatisticsKind.SECOND_ORDER:
            with TemporaryDirectory(dir=spill_folder()) as folder, loaded_layers(model) as source:
                store = SecondOrderStore(Path(folder), MeasuredOn(anatomy.fingerprint, "", ""))
                measure_second_order(source, batches, store, num_rows=num_rows(batches), on_batch=on_batch)
                arrays = eliminate(source, anatomy, store)
    statistics = ModelStatistics(kind, anatomy.fingerprint, arrays)
    statistics.check(anatomy)
    return statistics


def measure_checkpoint(
    folder: str | Path,
    batches: "BatchStream",
    device: "torch.device",
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> ModelStatistics:
    """The ACTIVATIONS of the dense checkpoint in `folder`, which is never loaded whole: the same numbers.

    Memory holds everything but the decoder first, and then one decoder layer; beside it the activations of one batch,
    and hidden states up to a bound (`pruning.forward.tensor_store`).

    Raises:
        InputError: there are no batches, or hidden states beyond the bound do not fit on the disk.
        UnsupportedModelError: the language model is of no supported family, or is pruned already.
        CheckpointError: the folder is damaged, or numbers are not finite.
    """
    from pruning.checkpoints.anatomy_reader import read_anatomy
    from pruning.checkpoints.finite_weights import check_finite_weights
    from pruning.forward.layer_source import CheckpointLayers
    from pruning.measuring.activation_statistics import measure_activations

    anatomy = read_anatomy(folder)
    source = CheckpointLayers(folder, device)
    arrays = measure_activations(source, batches, num_rows=batches.num_rows, on_batch=on_batch)
    statistics = ModelStatistics(StatisticsKind.ACTIVATIONS, anatomy.fingerprint, arrays)
    if statistics.infinite():
        check_finite_weights(folder)  # the likeliest reason, and another remedy
    statistics.check(anatomy)
    return statistics


def measure_elimination(
    folder: str | Path,
    batches: "BatchStream",
    calibration_id: str,
    weights_sha256: str,
    device: "torch.device",
    work: Path,
    *,
    on_batch: Callable[[int, int], None] | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> ModelStatistics:
    """The SECOND_ORDER statistics of the dense checkpoint in `folder`, one decoder layer in memory at a time.

    Args:
        work: the folder of H (`pruning.measuring.second_order`, with what it takes): layers that are there already, of
            an equal model and calibration set, are not measured again. It stays.
        on_batch: told of progress of the pass as (done, total), `on_layer` then of the elimination.

    Raises:
        InputError: there are no two conversations, `work` holds something else, or a disk is full.
        UnsupportedModelError: the language model is of no supported family, or is pruned already.
        CheckpointError: the folder is damaged, or numbers are not finite: layer and projection are named.
    """
    from pruning.checkpoints.anatomy_reader import read_anatomy
    from pruning.forward.layer_source import CheckpointLayers
    from pruning.measuring.eliminated_units import eliminate
    from pruning.measuring.second_order import MeasuredOn, SecondOrderStore, measure_second_order

    anatomy = read_anatomy(folder)
    store = SecondOrderStore(work, MeasuredOn(anatomy.fingerprint, weights_sha256, calibration_id))
    if not store.is_whole(anatomy.num_layers):
        source = CheckpointLayers(folder, device)
        measure_second_order(source, batches, store, num_rows=batches.num_rows, on_batch=on_batch)
        del source  # its front end may be gone
    arrays = eliminate(CheckpointLayers(folder, device), anatomy, store, on_layer=on_layer)
    statistics = ModelStatistics(StatisticsKind.SECOND_ORDER, anatomy.fingerprint, arrays)
    statistics.check(anatomy)
    return statistics
