"""One weight file: header, then the tensors' bytes in order, in blocks; seen under its name only when it is whole."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path

from pruning.checkpoints.blocks import BLOCK_BYTES, Bytes
from pruning.checkpoints.safetensors_layout import FileLayout
from pruning.cutting.streaming.outputs import OutputTensor

_WRITEBACK_BYTES = 64 * 2**20


def write_shard(
    path: Path,
    layout: FileLayout,
    outputs: Mapping[str, OutputTensor],
    *,
    on_bytes: Callable[[int], None],
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Write `path`, whose tensors are those of `layout`; it is on the disk when this returns.

    `on_bytes` is told how many bytes were written, each time.

    Raises:
        CheckpointError: a source cannot be read.
        OSError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    blocks = _one_ahead(_blocks(layout, outputs, block_bytes))
    with FileIO(partial, "wb") as file, closing(blocks):
        _write(file, memoryview(layout.head))
        written = flushed = len(layout.head)
        on_bytes(written)
        for block in blocks:
            _write(file, block.data)
            written += len(block)
            on_bytes(len(block))
            if written - flushed >= _WRITEBACK_BYTES:
                _start_writeback(file, flushed, written)
                flushed = written
        assert written == layout.file_bytes, f"{path.name}: {written} bytes, planned {layout.file_bytes}"
        os.fsync(file.fileno())
    partial.rename(path)


def _blocks(layout: FileLayout, outputs: Mapping[str, OutputTensor], block_bytes: int) -> Iterator[Bytes]:
    for name, _, _ in layout.tensors:
        yield from outputs[name].blocks(block_bytes)


def _one_ahead(blocks: Iterator[Bytes]) -> Generator[Bytes, None, None]:
    """The same blocks; the next one is read and cut in another thread while the caller writes."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(next, blocks, None)
        while (block := ahead.result()) is not None:
            ahead = reader.submit(next, blocks, None)
            yield block


def _write(file: FileIO, rest: memoryview) -> None:
    while rest:
        rest = rest[file.write(rest) :]


def _start_writeback(file: FileIO, start: int, stop: int) -> None:
    """Let the system begin to write these bytes to the disk, so that the sync at the end has little left to wait for.

    On Linux, saying that written pages are not needed does so, and gives those back that are on the disk. It is a hint:
    a file system that will not take it is none the worse.
    """
    with suppress(OSError, AttributeError):
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)
