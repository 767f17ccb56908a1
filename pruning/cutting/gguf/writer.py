"""Writing GGUF files: metadata first, then tensor after tensor, never more than a block of one in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pruning.anatomy.gguf_types import BLOCK_BYTES, StoredType, padded
from pruning.checkpoints.packed_tensors import StoredPacked
from pruning.cutting.gguf.packed_blocks import packed_blocks
from pruning.cutting.gguf.tensor_types import FILE_TYPES, encode, ggml_type
from pruning.cutting.gguf.tensors import GgufTensor, check_finite

if TYPE_CHECKING:
    from gguf import GGUFWriter

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]

QUANTIZATION_VERSION = 2
"""`general.quantization_version` of the q8_0 and q4_0 that are written (GGUF specification)."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file will hold.

    Attributes:
        architecture: `general.architecture`, which says how llama.cpp computes it.
        metadata: other keys, by their full name. A Python int becomes a 32-bit unsigned integer.
        tensors: in the order in which they are written.
        file_type: what most matrices are.
    """

    architecture: str
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    file_type: StoredType = field(default=StoredType.F16)

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors, padding included."""
        return sum(padded(t.nbytes) for t in self.tensors)


def write_gguf(file: GgufFile, path: Path, *, on_bytes: Callable[[int], None] | None = None) -> None:
    """Write `file` to `path`; `on_bytes(n)` is told of every n bytes of tensor data that were written.

    Raises:
        CheckpointError: a weight is not finite, or does not fit its type.
        OSError: the disk.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, file.architecture)
    try:
        for key, value in _all_metadata(file).items():
            _add(writer, key, value)
        for tensor in file.tensors:
            kind = ggml_type(tensor.stored)
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        (out,) = writer.fout
        writer.write_padding(out, out.tell())
        for tensor in file.tensors:
            for block in _encoded(tensor):
                written = out.write(block)
                if on_bytes is not None:
                    on_bytes(written)
            writer.write_padding(out, tensor.nbytes)
    finally:
        writer.close()


def _encoded(tensor: GgufTensor) -> Iterator[bytes]:
    """Its data, block after block."""
    if isinstance(tensor.source, StoredPacked):
        yield from packed_blocks(tensor, tensor.source)
        return
    for block in tensor.blocks():
        check_finite(block, tensor)
        yield encode(block, tensor.stored)


def _all_metadata(file: GgufFile) -> dict[str, Value]:
    """The file's metadata, and what every file has."""
    known: dict[str, Value] = {"general.file_type": FILE_TYPES[file.file_type], **file.metadata}
    if any(t.stored in BLOCK_BYTES for t in file.tensors):
        known["general.quantization_version"] = QUANTIZATION_VERSION
    return known


def _add(writer: "GGUFWriter", key: str, value: Value) -> None:
    match value:
        case str():
            writer.add_string(key, value)
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_array(key, list(value))
