"""How the values of a tensor are stored in a GGUF file, and how many bytes that takes."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pruning.cutting.gguf.options import StoredType, TensorType
from pruning.missing_packages import missing_extra

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Float32Array = npt.NDArray[np.float32]

BLOCK = 32
"""Values of a row that share one scale in q8_0 and q4_0: a row's length must be a multiple of it."""

PACKED_TYPES = {8: StoredType.Q8_0, 4: StoredType.Q4_0}
"""What holds weights of so many bits, symmetric about zero."""

BLOCK_BYTES = {StoredType.Q8_0: 2 + BLOCK, StoredType.Q4_0: 2 + BLOCK // 2}
"""Of a block: a half-precision scale, and a byte or half of one a value (ggml-common.h)."""

_VALUE_BYTES = {StoredType.F32: 4, StoredType.F16: 2, StoredType.BF16: 2}

FILE_TYPES = {
    StoredType.F32: 0,
    StoredType.F16: 1,
    StoredType.Q4_0: 2,
    StoredType.Q8_0: 7,
    StoredType.BF16: 32,
}
"""`general.file_type`: what most matrices are (GGUF specification, "General metadata")."""


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
    count = 1
    for extent in shape:
        count *= extent
    if stored in BLOCK_BYTES:
        return count // BLOCK * BLOCK_BYTES[stored]
    return count * _VALUE_BYTES[stored]


def encode(values: Float32Array, stored: StoredType) -> bytes:
    """The bytes of whole rows. Values past the range of f16 become infinite: the caller looks at them before."""
    from gguf import quants

    return quants.quantize(np.ascontiguousarray(values), ggml_type(stored)).tobytes()


def ggml_type(stored: StoredType) -> "GGMLQuantizationType":
    """The type's number in the file."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[stored.name]


def require_gguf() -> None:
    """Raises MissingExtraError if the gguf package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise missing_extra("gguf", "exporting to GGUF needs the gguf extra", values=str(error)) from error
