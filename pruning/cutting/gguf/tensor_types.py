"""How the values of a tensor become the bytes of a GGUF file, by the gguf package."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pruning.anatomy.gguf_types import StoredType
from pruning.missing_packages import missing_extra

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Float32Array = npt.NDArray[np.float32]

FILE_TYPES = {
    StoredType.F32: 0,
    StoredType.F16: 1,
    StoredType.Q4_0: 2,
    StoredType.Q8_0: 7,
    StoredType.BF16: 32,
}
"""`general.file_type`: what most matrices are (GGUF specification, "General metadata")."""


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
