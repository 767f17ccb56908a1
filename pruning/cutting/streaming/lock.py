"""One run at a time: a file that the process which writes an output holds, and lets go of when it dies."""

import hashlib
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from pruning.errors import CheckpointError, OutputBusyError

logger = logging.getLogger(__name__)


@contextmanager
def locked_file(path: Path, out: Path) -> Iterator[BinaryIO]:
    """The file `path`, made if it is not there, open for reading and writing, locked for who writes `out`.

    Some network file systems have no locks. Then a file in the system's folder for temporary files is locked instead,
    which only runs on this machine see.

    Raises:
        OutputBusyError: another process holds it.
        CheckpointError: `path` is a link or no regular file, or the system has no `flock`.
        OSError: `path` cannot be opened.
    """
    if find_spec("fcntl") is None:
        raise CheckpointError(
            "outputs are written where files can be locked: on Linux or macOS",
            values=sys.platform,
            remedy="On Windows, use WSL",
        )
    while True:
        with ExitStack() as stack:
            file = stack.enter_context(_open_regular(path))
            try:
                _lock(file, out)
            except OSError as error:
                reason = error.strerror
                logger.warning("no locks in %s (%s): let no other machine write there", path.parent, reason)
                stack.enter_context(_locked_here(out))
            # A run that just ended may have removed the file between our opening and our locking it.
            if _is_at(file, path):
                yield file
                return


@contextmanager
def _locked_here(out: Path) -> Iterator[None]:
    """A lock on `out` that other processes of this user on this machine see."""
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"lop-{os.getuid()}-{name}.lock"
    with ExitStack() as stack:
        try:
            _lock(stack.enter_context(_open_regular(path)), out)
        except OSError as error:
            logger.warning("no locks in %s either (%s): let no other run write %s", path.parent, error.strerror, out)
        yield  # the file stays: to remove it would let two runs hold two files of one name


def _lock(file: BinaryIO, out: Path) -> None:
    """Raises OutputBusyError if another holds it, OSError if the file system cannot say."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputBusyError(
            "one run at a time may write an output",
            values=f"another writes {out}",
            remedy="Wait for it, or choose another place",
        ) from None


def _open_regular(path: Path) -> BinaryIO:
    """Opened for reading and writing, never through a link."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise _not_ours(path)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_ours(path)
    return file


def _not_ours(path: Path) -> CheckpointError:
    return CheckpointError(
        "what is in the draft's place must be a draft",
        values=f"{path}, a link or no regular file",
        remedy=f"Remove {path}, or choose another output",
    )


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
