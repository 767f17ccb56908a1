"""Files that are seen whole or not at all, and the names of what lies beside an output while it is made."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruning.errors import CheckpointError

MAX_NAME_BYTES = 255
"""Of a file's name, on the file systems of Linux and macOS."""


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part; raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The file that the block writes, and that then takes the place of `path`; removed if an OSError ends the block."""
    temporary = draft_of(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError:
        if len(os.fsencode(path.name)) <= MAX_NAME_BYTES:  # else there is no such file, and asking for it fails too
            temporary.unlink(missing_ok=True)
        raise


def draft_of(path: Path) -> Path:
    """Where this process writes what then becomes `path`: beside it, under a name that no other process uses.

    The number of the process is not enough: every container has a process 1, and workers in several share a volume.
    """
    return beside(path, f".{socket.gethostname()}-{os.getpid()}.partial")


def check_name(path: Path) -> None:
    """Raises CheckpointError, before anything is written, if no file can have the name of the output `path`."""
    length = len(os.fsencode(path.name))
    if length > MAX_NAME_BYTES:
        raise CheckpointError(
            f"an output's name has {MAX_NAME_BYTES} bytes at most",
            values=f"{length} bytes: {path.name[:40]}...",
            remedy="Choose a shorter one",
        )


def beside(path: Path, ending: str, *, stem: str | None = None, start: str = ".") -> Path:
    """The file or folder beside `path` that is called `start`, then its name (or `stem`), then `ending`.

    Where that is longer than a name may be, a digest stands for the name: equal names give equal neighbours, and an
    output whose own name just fits can be written.
    """
    stem = path.name if stem is None else stem
    name = f"{start}{stem}{ending}"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f"{start}{hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]}{ending}"
    return path.with_name(name)
