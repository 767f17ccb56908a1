"""How the values of a tensor are stored in a GGUF file, and how many bytes that takes."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pruning.cutting.gguf.options import TensorType
from pruning.missing_packages import missing_extra

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Float32Array = npt.NDArray[np.float32]

Q8_BLOCK = 32
"""Values of a row that share one scale in q8_0: a row's length must be a multiple of it."""

_Q8_BLOCK_BYTES = 2 + Q8_BLOCK  # a half-precision scale and a byte a value
_VALUE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


FILE_TYPES = {TensorType.F32: 0, TensorType.F16: 1, TensorType.Q8_0: 7, TensorType.BF16: 32}
"""`general.file_type`: what most matrices are (GGUF specification, "General metadata")."""


def stored_type(shape: tuple[int, ...], wanted: TensorType) -> TensorType:
    """What a tensor of `shape` is stored as when matrices are `wanted`.

    Vectors stay f32. Rows that q8_0 blocks do not fit become f16, as llama.cpp's own converters have it.
    """
    if len(shape) < 2:
        return TensorType.F32
    if wanted is TensorType.Q8_0 and shape[-1] % Q8_BLOCK:
        return TensorType.F16
    return wanted


def stored_bytes(shape: tuple[int, ...], stored: TensorType) -> int:
    """Bytes of a tensor's data, without padding."""
    count = 1
    for extent in shape:
        count *= extent
    if stored is TensorType.Q8_0:
        return count // Q8_BLOCK * _Q8_BLOCK_BYTES
    return count * _VALUE_BYTES[stored.value]


def encode(values: Float32Array, stored: TensorType) -> bytes:
    """The bytes of whole rows. Values past the range of f16 become infinite: the caller looks at them before."""
    from gguf import quants

    return quants.quantize(np.ascontiguousarray(values), ggml_type(stored)).tobytes()


def ggml_type(stored: TensorType) -> "GGMLQuantizationType":
    """The type's number in the file."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[stored.name]


def require_gguf() -> None:
    """Raises MissingExtraError if the gguf package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise missing_extra("gguf", "exporting to GGUF needs the gguf extra", values=str(error)) from error
