"""A stored tensor's bytes, whole or cut along one axis, in blocks of bounded size.

Files are read, never mapped: mapped pages would count as resident memory. No dtype is interpreted: an element is so
many bytes, which is why half precisions need no library.
"""

import math
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.arrays import IntArray
from pruning.checkpoints.headers import StoredTensor
from pruning.errors import CheckpointError

Bytes = NDArray[np.uint8]
"""A run of bytes, one-dimensional and contiguous."""

BLOCK_BYTES = 2**20
"""Large enough that a system call costs nothing beside it, small enough for a processor's cache: of 0.25 to 8 MiB, 0.5
and 1 were the fastest."""

BRIDGED_GAP_BYTES = 64 * 2**10
"""A gap of unwanted rows up to this size is read and dropped: seeking over it costs a disk more than reading it."""

_ELEMENTS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def open_weights(path: Path) -> FileIO:
    """The weight file, unbuffered; raises CheckpointError."""
    try:
        return FileIO(path)
    except OSError as error:
        raise CheckpointError("a weight file must be readable", values=f"{path}: {error.strerror}") from error


def whole_blocks(tensor: StoredTensor, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Bytes]:
    """All bytes of `tensor`. Raises CheckpointError if the file is no longer as long as its header says."""
    with open_weights(tensor.path) as file:
        yield from _range(file, tensor.offset, tensor.num_bytes, block_bytes)


def cut_blocks(tensor: StoredTensor, axis: int, kept: IntArray, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Bytes]:
    """The bytes of `tensor` with only the indices `kept`, ascending, along `axis`.

    Of the first axis only the kept rows are read, but for small gaps between them; of any other, everything, since what
    is kept of a row is scattered over it. Raises as `whole_blocks`.
    """
    inner_bytes = math.prod(tensor.shape[axis + 1 :]) * DTYPE_BYTES[tensor.dtype]
    outer, row_bytes = math.prod(tensor.shape[:axis]), tensor.shape[axis] * inner_bytes
    with open_weights(tensor.path) as file:
        if outer == 1 or row_bytes > block_bytes:
            for row in range(outer):
                yield from _kept_rows(file, tensor.offset + row * row_bytes, inner_bytes, kept, block_bytes)
            return
        rows_at_once = block_bytes // row_bytes
        element = DTYPE_BYTES[tensor.dtype]
        for first in range(0, outer, rows_at_once):
            count = min(rows_at_once, outer - first)
            block = read_bytes(file, tensor.offset + first * row_bytes, count * row_bytes)
            rows = block.view(_ELEMENTS[element]).reshape(count, tensor.shape[axis], inner_bytes // element)
            yield rows.take(kept, axis=1).reshape(-1).view(np.uint8)


def read_bytes(file: FileIO, offset: int, count: int) -> Bytes:
    """`count` bytes from `offset`. Raises CheckpointError if they are not there."""
    block = np.empty(count, np.uint8)
    rest = block.data
    try:
        file.seek(offset)
        while rest:
            read = file.readinto(rest)
            if not read:
                raise CheckpointError(
                    "a weight file must stay as it is while it is read", values=f"{file.name!r} ends early"
                )
            rest = rest[read:]
    except OSError as error:
        raise CheckpointError("a weight file must be readable", values=f"{file.name!r}: {error.strerror}") from error
    return block


def _range(file: FileIO, offset: int, count: int, block_bytes: int) -> Iterator[Bytes]:
    for start in range(0, count, block_bytes):
        yield read_bytes(file, offset + start, min(block_bytes, count - start))


def _kept_rows(file: FileIO, start: int, row_bytes: int, kept: IntArray, block_bytes: int) -> Iterator[Bytes]:
    """The rows `kept` of a matrix that begins at `start` of the file."""
    gap_rows = 0 if row_bytes > block_bytes else BRIDGED_GAP_BYTES // row_bytes
    for run in np.split(kept, np.flatnonzero(np.diff(kept) > 1 + gap_rows) + 1):
        if row_bytes > block_bytes:  # consecutive, since no gap is bridged
            yield from _range(file, start + int(run[0]) * row_bytes, len(run) * row_bytes, block_bytes)
            continue
        rest = run
        while rest.size:
            first = int(rest[0])
            span = rest[: np.searchsorted(rest, first + block_bytes // row_bytes)]
            rest = rest[span.size :]
            count = int(span[-1]) - first + 1
            block = read_bytes(file, start + first * row_bytes, count * row_bytes)
            if span.size == count:
                yield block
            else:
                yield block.reshape(count, row_bytes).take(span - first, axis=0).reshape(-1)
