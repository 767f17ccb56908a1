"""The tensors of a GGUF file and where their values come from: read a block of rows at a time, never whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pruning.anatomy.dtypes import DTYPE_BYTES, FLOAT_DTYPES, decode
from pruning.anatomy.gguf_types import BLOCK, PACKED_TYPES, StoredType, TensorType, stored_bytes, stored_type
from pruning.checkpoints.blocks import open_weights, read_bytes
from pruning.checkpoints.headers import StoredTensor
from pruning.checkpoints.packed_tensors import StoredPacked
from pruning.cutting.gguf.tensor_types import Float32Array
from pruning.errors import CheckpointError, UnsupportedModelError

BLOCK_BYTES = 16 * 2**20
"""Values in memory at once, as float32: rows are read in blocks of about so many bytes."""

Stored = Mapping[str, StoredTensor]
"""Every tensor of a checkpoint folder by its name."""

Weights = Mapping[str, StoredTensor | StoredPacked]
"""The same, with weights in few bits by the names of dense ones."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file to be written.

    Attributes:
        name: its name in the GGUF file.
        shape: as PyTorch has it, rows first; the file lists extents in the opposite order.
        stored: how its values are stored.
        source: the checkpoint's tensor, of that shape or a smaller one: zeros are added behind its rows and columns.
            None if `values` holds what is written. One in few bits is written by `packed_blocks`.
        rotary_dim: if not 0, rows come in heads of so many, and each head's are put into llama.cpp's rotary order.
        shift, scale: what is written of a source's value x is scale * (x + shift).
        values: of a tensor that no file holds (rotary factors, a bias that a projector lacks).
    """

    name: str
    shape: tuple[int, ...]
    stored: StoredType
    source: StoredTensor | StoredPacked | None = None
    rotary_dim: int = 0
    shift: float = 0.0
    scale: float = 1.0
    values: Float32Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its data in the GGUF file, without padding."""
        return stored_bytes(self.shape, self.stored)

    def blocks(self) -> Iterator[Float32Array]:
        """Its rows, block after block, in the order in which they are written; none of a source in few bits."""
        if self.values is not None:
            yield self.values
        if isinstance(self.source, StoredTensor):
            rows = _source_blocks(self.source, self.rotary_dim)
            if (self.shift, self.scale) != (0.0, 1.0):
                rows = ((block + np.float32(self.shift)) * np.float32(self.scale) for block in rows)
            yield from _filled_up(rows, self.shape)

    @property
    def origin(self) -> str:
        """The name that a user knows it by."""
        return self.name if self.source is None else self.source.name


def copied(
    name: str,
    source: str,
    stored: Weights,
    wanted: TensorType,
    *,
    shape: tuple[int, ...] | None = None,
    rotary_dim: int = 0,
    shift: float = 0.0,
    scale: float = 1.0,
) -> GgufTensor:
    """The checkpoint's tensor `source`, under llama.cpp's name for it; filled up with zeros to `shape`, if given.

    What is in few bits keeps them, whatever is `wanted`. Raises UnsupportedModelError if its rows are then no blocks.
    """
    found = stored[source]
    shape = shape or found.shape
    if isinstance(found, StoredPacked):
        _check_row(source, shape[1])
        assert (shift, scale) == (0.0, 1.0)  # norms alone have them
        return GgufTensor(name, shape, PACKED_TYPES[found.bits], found, rotary_dim)
    return GgufTensor(name, shape, stored_type(shape, wanted), found, rotary_dim, shift, scale)


def zeros(name: str, shape: tuple[int, ...], wanted: TensorType) -> GgufTensor:
    """A tensor of zeros, of which the checkpoint knows nothing."""
    return GgufTensor(name, shape, stored_type(shape, wanted), values=np.zeros(shape, dtype=np.float32))


def check_shape(stored: Weights, name: str, shape: tuple[int, ...]) -> None:
    """The checkpoint's tensor can be written, and is of that shape.

    Raises:
        CheckpointError: it has another shape, or a dtype that is no plain number.
        UnsupportedModelError: it is in few bits, and its groups are no whole blocks.
    """
    tensor = stored[name]
    if tensor.shape != shape:
        raise CheckpointError(
            "a tensor must have the shape that the config says",
            values=f"{name} {list(tensor.shape)}, should be {list(shape)}",
        )
    if isinstance(tensor, StoredPacked):
        _check_packed(tensor)
        return
    if (dtype := tensor.dtype) not in FLOAT_DTYPES:
        raise CheckpointError(
            "weights must be of a plain dtype", values=f"{name} {dtype}, known {', '.join(FLOAT_DTYPES)}"
        )


def _check_packed(weight: StoredPacked) -> None:
    if weight.bits not in PACKED_TYPES or weight.scales.dtype not in FLOAT_DTYPES:
        raise UnsupportedModelError(
            f"weights in few bits must be in {' or '.join(map(str, PACKED_TYPES))}, with scales of a plain dtype",
            values=f"{weight.name}: {weight.bits} bits, scales {weight.scales.dtype}",
        )
    if weight.group % BLOCK:
        raise UnsupportedModelError(
            f"inputs that share a scale must be whole blocks of {BLOCK}, which q8_0 and q4_0 have",
            values=f"{weight.name}: {weight.shape[1]:,} inputs, a scale for every {weight.group}",
            remedy="Quantise with groups of 32, 64 or 128",
        )


def _check_row(name: str, inputs: int) -> None:
    if inputs % BLOCK:
        raise UnsupportedModelError(
            f"a row of weights in few bits must be whole blocks of {BLOCK}, which q8_0 and q4_0 have",
            values=f"{name}: {inputs:,} inputs in the file",
            remedy="Keep that sub-layer's weights as they are, or plan other sizes",
        )


def rows_at_once(row_values: int, rotary_dim: int) -> int:
    """Rows in a block of about BLOCK_BYTES as float32: whole heads, if `rotary_dim` is not 0."""
    step = max(1, BLOCK_BYTES // (4 * row_values))
    return max(rotary_dim, step // rotary_dim * rotary_dim) if rotary_dim else step


def _source_blocks(source: StoredTensor, rotary_dim: int) -> Iterator[Float32Array]:
    """Blocks of whole rows (whole heads, if rotary) of a checkpoint's tensor; raises CheckpointError."""
    row_values = prod(source.shape[1:])
    step = rows_at_once(row_values, rotary_dim)
    row_bytes = row_values * DTYPE_BYTES[source.dtype]
    with open_weights(source.path) as file:
        for start in range(0, source.shape[0], step):
            count = min(step, source.shape[0] - start)
            data = read_bytes(file, source.offset + start * row_bytes, count * row_bytes)
            rows = decode(data, source.dtype).astype(np.float32).reshape(count, *source.shape[1:])
            yield rotary_rows(rows, rotary_dim) if rotary_dim else rows


def _filled_up(blocks: Iterator[Float32Array], shape: tuple[int, ...]) -> Iterator[Float32Array]:
    """`blocks` of rows, with zeros behind each row and behind the last one until they are of `shape`."""
    done = 0
    for block in blocks:
        done += len(block)
        missing = [(0, 0), *((0, wanted - found) for wanted, found in zip(shape[1:], block.shape[1:], strict=True))]
        yield np.pad(block, missing) if any(after for _, after in missing) else block
    step = max(1, BLOCK_BYTES // (4 * prod(shape[1:])))
    for start in range(done, shape[0], step):
        yield np.zeros((min(step, shape[0] - start), *shape[1:]), dtype=np.float32)


def rotary_rows(rows: npt.NDArray[_Number], head_dim: int) -> npt.NDArray[_Number]:
    """Rows of queries or keys in the order that llama.cpp's rotation reads: pairs (0, d/2), (1, d/2 + 1), ...

    transformers rotates value i of a head with value i + d/2; llama.cpp's `LLAMA_ROPE_TYPE_NORM`, which the `llama` and
    `deci` architectures use, rotates values 2i and 2i + 1. Rows [H d, ...]; a bias [H d] is permuted alike.
    """
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def check_finite(block: Float32Array, tensor: GgufTensor) -> None:
    """Raises CheckpointError if a value is not finite, or is past the range of what it will be stored as."""
    largest = float(np.abs(block).max(initial=0.0))
    if not np.isfinite(largest):
        raise CheckpointError("every weight must be a finite number", values=tensor.origin)
    limit = float(np.finfo(np.float16).max)
    # q8_0 stores a half-precision scale, a 127th of the largest value of 32.
    if tensor.stored is StoredType.Q8_0:
        limit *= 127
    if tensor.stored in (StoredType.F16, StoredType.Q8_0) and largest > limit:
        raise CheckpointError(
            f"a weight must fit the range of {tensor.stored.value}",
            values=f"{largest:g} in {tensor.origin}",
            remedy="Export as bf16 or f32 instead",
        )
