"""What a GGUF file's tensors take: those of the language model that `lop export gguf` writes, to the byte.

A weight in 8 or 4 bits is q8_0 or q4_0, every other matrix of the type that is asked for, by the rule for rows that no
block divides (`gguf_types.stored_type`), and what is no matrix is f32. Each tensor is counted with the padding behind
it; vocabulary and other metadata, which no plan changes, are not, nor the file of the vision part.

Where llama.cpp needs zeros in the place of what is skipped (`pruning.cutting.gguf.decoder_layers`), they depend on the
layer's other half. Tables count an FFN of zeros wherever an FFN may be skipped by itself, and no option below the one
that keeps least: a bound from above. `cost` is exact.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_layer import TensorSpec
from pruning.anatomy.gguf_types import (
    BLOCK,
    LAYERS_OF_ONE_SIZE,
    LAYERS_OF_OWN_SIZE,
    PACKED_TYPES,
    STAND_IN_CHANNELS,
    StoredType,
    TensorType,
    padded,
    stored_bytes,
    stored_type,
    value_bytes,
)
from pruning.anatomy.packed_weights import is_packed, packed_weights
from pruning.anatomy.tensor_roles import decoder_tensor, outer_tensor
from pruning.arrays import IntArray
from pruning.errors import InputError
from pruning.planning.added_biases import added_biases
from pruning.planning.limits import LimitKind
from pruning.planning.prices import MOST_SPACES, Price, dense_units, fewer_bits
from pruning.planning.space import Options, Space


def gguf_bytes(anatomy: ModelAnatomy, wanted: TensorType, *, compensates: bool = False) -> "GgufPrice":
    """The price of files whose matrices are `wanted` where their weights keep their dtype; raises as `GgufPrice`."""
    return _price(anatomy, wanted, compensates, anatomy.num_rotary_factors)


@lru_cache(maxsize=64)
def _price(
    anatomy: ModelAnatomy,
    wanted: TensorType,
    compensates: bool,
    num_rotary_factors: int | None,  # noqa: ARG001 (of the key: anatomies that differ in them alone are equal)
) -> "GgufPrice":
    return GgufPrice(anatomy, wanted, compensates=compensates)


def is_exported(anatomy: ModelAnatomy) -> bool:
    """Whether GGUF files are written of such language models, so that they have a price."""
    known = LAYERS_OF_OWN_SIZE | LAYERS_OF_ONE_SIZE
    return anatomy.text_model_type in known and bool(anatomy.tensors)


def is_priced(anatomy: ModelAnatomy, architecture: Architecture) -> bool:
    """Whether the file of `architecture` has a price: see `GgufPrice`."""
    if not is_exported(anatomy):
        return False
    return anatomy.text_model_type in LAYERS_OF_OWN_SIZE or not anatomy.sizes(architecture).items


class GgufPrice(Price):
    """Bytes of the tensors in a GGUF file.

    Raises:
        InputError: no such file is written of the model; from `of`, too, where units go of a family all of whose layers
            llama.cpp gives one size: the bytes of a layer depend on the others' there.
    """

    kind = LimitKind.GGUF_BYTES

    def __init__(self, anatomy: ModelAnatomy, wanted: TensorType, *, compensates: bool = False) -> None:
        if not is_exported(anatomy):
            raise InputError(
                "bytes of GGUF files are known of language models that `lop export gguf` writes",
                values=f"{anatomy.text_model_type}, {len(anatomy.tensors)} tensors",
                remedy=f"Limit disk_bytes instead; models that are written: "
                f"{', '.join(sorted(LAYERS_OF_OWN_SIZE | LAYERS_OF_ONE_SIZE))}",
            )
        self._text_model_type = anatomy.text_model_type
        self._fits_each_layer = anatomy.text_model_type in LAYERS_OF_OWN_SIZE
        self._wanted = wanted
        self.dense = dense_units(anatomy)
        self._tensors: dict[Site, tuple[TensorSpec, ...]] = dict.fromkeys(self.dense, ())
        fixed = 0
        for tensor in anatomy.tensors:
            if tensor.site is not None:
                self._tensors[tensor.site] += (tensor,)
            elif outer_tensor(tensor.name) or decoder_tensor(tensor.name):
                fixed += self._bytes(tensor.shape)
        self.fixed = fixed + self._rotary_bytes(anatomy)
        self._packed = packed_weights(anatomy)
        biases = added_biases(anatomy) if compensates else {}
        self._added = {Site(layer, Sublayer.FFN): self._bytes(bias.shape) for layer, bias in biases.items()}
        self._stand_ins: Mapping[Site, int] = {
            site: sum(
                self._bytes(shape)
                for tensor in tensors
                if (shape := _stand_in(tensor, anatomy.layers[site.layer].head_dim)) is not None
            )
            for site, tensors in self._tensors.items()
        }
        # Budgets differ from request to request, not the spaces that plans are made in.
        self._known = lru_cache(MOST_SPACES)(self._shared)

    def _rotary_bytes(self, anatomy: ModelAnatomy) -> int:
        """Of the factors of rotary frequencies; if the anatomy does not say how many, as many as there can be."""
        count = anatomy.num_rotary_factors
        if count is None:
            count = max(layer.head_dim for layer in anatomy.layers) // 2 if self._fits_each_layer else 0
        return self._bytes((count,))

    def _bytes(self, shape: tuple[int, ...]) -> int:
        """Of a tensor whose values keep their dtype."""
        return padded(stored_bytes(shape, stored_type(shape, self._wanted)))

    def of(self, site: Site, options: Options) -> IntArray:
        units, dense = options.units, self.dense[site]
        if not self._fits_each_layer:
            if (units != dense).any():
                raise InputError(
                    "llama.cpp must give each layer its own size where bytes of a GGUF file add up by layers",
                    values=f"{self._text_model_type}: layers are filled up to the widest",
                    remedy="Limit disk_bytes instead, or ask for the space 'bits'",
                )
            if site.sublayer is Sublayer.FFN:
                units = -(-units // BLOCK) * BLOCK
        tensors = self._tensors[site]
        bits = fewer_bits(self._packed.get(site, ()), options)
        found = np.zeros(len(options), dtype=np.int64)
        for tensor in tensors:
            found += self._of_tensor(tensor, units, bits)
        found += np.where(units < dense, self._added.get(site, 0), 0)
        return np.where(units > 0, found, self._of_nothing(site))

    def cost_of(self, site: Site, option: Option) -> int:
        # The same in Python's own integers, many times as quick for one option; what is refused, `of` refuses.
        if not self._fits_each_layer:
            return super().cost_of(site, option)
        if option.bits is not None:
            fewer_bits(self._packed.get(site, ()), Options.of([option]))
        if option.units == 0:
            return self._of_nothing(site)
        found = self._added.get(site, 0) if option.units < self.dense[site] else 0
        for tensor in self._tensors[site]:
            shape = tensor.shape_with(option)
            assert shape is not None
            bits = option.bits if is_packed(tensor) else None
            stored = stored_type(shape, self._wanted) if bits is None else PACKED_TYPES[bits]
            found += padded(stored_bytes(shape, stored))
        return found

    def _of_tensor(self, tensor: TensorSpec, units: IntArray, bits: IntArray) -> IntArray:
        """[K] where its site keeps `units` [K] > 0, in `bits` [K]."""
        extents = [np.full(len(units), extent, dtype=np.int64) for extent in tensor.shape]
        if tensor.axis is not None:
            extents[tensor.axis] = tensor.shape[tensor.axis] // tensor.parts[0].count * units
        count = np.prod(extents, axis=0, dtype=np.int64)
        if len(extents) < 2:
            return padded(value_bytes(count, StoredType.F32))
        row = extents[-1]
        divided, other = (stored_type((1, size), self._wanted) for size in (BLOCK, 1))
        found = np.where(row % BLOCK == 0, value_bytes(count, divided), value_bytes(count, other))
        if is_packed(tensor):
            for each, stored in PACKED_TYPES.items():
                found = np.where(bits == each, value_bytes(count, stored), found)
        return padded(found)

    def _of_nothing(self, site: Site) -> int:
        """What stands for a sub-layer that is skipped, in tables: zeros of an FFN, nothing of attention, which all
        spaces leave in the first layer."""
        return self._stand_ins[site] if site.sublayer is Sublayer.FFN else 0

    def cost(self, architecture: Architecture) -> int:
        cost = super().cost(architecture)
        options = architecture.options
        layers = sorted({site.layer for site in self.dense})
        skipped = {site for site, option in options.items() if option.units == 0}
        gone = {layer for layer in layers if {Site(layer, half) for half in Sublayer} <= skipped}
        cost -= sum(self._stand_ins[Site(layer, Sublayer.FFN)] for layer in gone)
        first = next((Site(layer, Sublayer.ATTENTION) for layer in layers if layer not in gone), None)
        return cost + (self._stand_ins[first] if first in skipped else 0)

    def _over(self, space: Space) -> tuple[int, tuple[IntArray, ...]]:
        return self._known(space)

    def _shared(self, space: Space) -> tuple[int, tuple[IntArray, ...]]:
        fixed, rows = super()._over(space)
        for decision, row in zip(space.decisions, rows, strict=True):
            if len(decision.sites) > 1:  # where a whole layer goes, nothing stands for it
                gone = np.array([all(option.units == 0 for option in kept) for kept in decision.kept])
                row -= gone * sum(self._of_nothing(site) for site in decision.sites)
            # Of a few channels the file may take less than of zeros for none, and of a row of whole blocks less than of
            # a shorter one. But what keeps least must be cheapest under every limit at once (`CostTable`).
            np.maximum(row, row[0], out=row)
            row.setflags(write=False)
        return fixed, rows


def _stand_in(tensor: TensorSpec, head_dim: int) -> tuple[int, ...] | None:
    """The shape of the zeros that stand for a tensor of a skipped sub-layer, of `STAND_IN_CHANNELS` channels or of one
    head; None where nothing does, as for biases."""
    if not tensor.name.endswith(".weight"):
        return None
    if tensor.axis is None:
        return tensor.shape
    extent = STAND_IN_CHANNELS if tensor.holds(Sublayer.FFN) else head_dim
    return (*tensor.shape[: tensor.axis], extent, *tensor.shape[tensor.axis + 1 :])
