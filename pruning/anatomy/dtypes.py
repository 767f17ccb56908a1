"""The dtypes of stored tensors, by their names in safetensors headers.

numpy has no bfloat16 and torch takes long to import, so both are kept behind functions here: the first decodes, the
second imports torch when it is called.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

DTYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of one value."""

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}

FLOAT_DTYPES = tuple(_TORCH_NAMES)
"""Those that weights have; all others are of integer buffers."""

_NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "BF16": "<u2", "F16": "<f2"}


def torch_dtype(name: str) -> "torch.dtype":
    """torch's dtype of a name in FLOAT_DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: "torch.dtype") -> str:
    """The name of torch's dtype; "F32" for one that is not in FLOAT_DTYPES."""
    wanted = str(dtype).removeprefix("torch.")
    return next((name for name, torch_name in _TORCH_NAMES.items() if torch_name == wanted), "F32")


def decode(content: NDArray[np.uint8], dtype: str) -> NDArray[np.floating[Any]]:
    """The numbers in a run of bytes, `dtype` in FLOAT_DTYPES: as they are stored, BF16 as float32."""
    numbers = content.view(_NUMPY_DTYPES[dtype])
    if dtype == "BF16":  # the upper half of a float32
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers
