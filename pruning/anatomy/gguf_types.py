"""How GGUF files hold tensors, in numbers: which types there are, which one a tensor gets, and how many bytes it takes.

Prices of plans and the files that are written both go by it.
"""

from enum import StrEnum
from math import prod
from typing import TypeVar

from pruning.arrays import IntArray

_Count = TypeVar("_Count", int, IntArray)


class TensorType(StrEnum):
    """What a matrix of the exported model is stored as. Vectors (norms, biases) are always f32."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


class StoredType(StrEnum):
    """How a file holds a tensor: all that may be chosen, and q4_0, which weights in four bits are in."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


BLOCK = 32
"""Values of a row that share one scale in q8_0 and q4_0: a row's length must be a multiple of it."""

STAND_IN_CHANNELS = BLOCK
"""Of an FFN of zeros, which llama.cpp needs where a layer is attention alone: the fewest that every type can store."""

ALIGNMENT = 32
"""Every tensor's data begin at a multiple of it (`general.alignment`, its default)."""

PACKED_TYPES = {8: StoredType.Q8_0, 4: StoredType.Q4_0}
"""What holds weights of so many bits, symmetric about zero."""

BLOCK_BYTES = {StoredType.Q8_0: 2 + BLOCK, StoredType.Q4_0: 2 + BLOCK // 2}
"""Of a block: a half-precision scale, and a byte or half of one a value (ggml-common.h)."""

_VALUE_BYTES = {StoredType.F32: 4, StoredType.F16: 2, StoredType.BF16: 2}

LAYERS_OF_OWN_SIZE = frozenset({"llama", "mistral", "qwen2"})
"""Language models whose layers keep what sizes they have in a file (llama.cpp's `deci` and `llama`)."""

LAYERS_OF_ONE_SIZE = frozenset({"qwen2_vl_text", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text", "gemma3_text"})
"""Those whose layers are all filled up to the widest."""


def stored_type(shape: tuple[int, ...], wanted: TensorType) -> StoredType:
    """What a tensor of `shape` is stored as when matrices are `wanted`.

    Vectors stay f32. Rows that q8_0 blocks do not fit become f16, as llama.cpp's own converters have it.
    """
    if len(shape) < 2:
        return StoredType.F32
    if wanted is TensorType.Q8_0 and shape[-1] % BLOCK:
        return StoredType.F16
    return StoredType(wanted.value)


def stored_bytes(shape: tuple[int, ...], stored: StoredType) -> int:
    """Bytes of a tensor's data, without padding."""
    return value_bytes(prod(shape), stored)


def value_bytes(count: _Count, stored: StoredType) -> _Count:
    """Bytes of `count` values, of whole rows; of each number, where they are many."""
    if stored in BLOCK_BYTES:
        return count // BLOCK * BLOCK_BYTES[stored]
    return count * _VALUE_BYTES[stored]


def padded(nbytes: _Count) -> _Count:
    """Bytes that data of `nbytes` take in the file: what follows begins at a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
