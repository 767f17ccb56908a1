"""From a draft to its place: everything on the disk first, then one rename."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from pruning.errors import CheckpointError

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems that cannot sync a folder say; their renames are on the disk when they please."""


def publish_folder(folder: Path, out: Path) -> None:
    """Make the whole `folder` be `out`, on the disk too. Raises OSError."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
    folder.rename(out)
    sync(out.parent)


def publish_files(drafts: Mapping[Path, Path]) -> None:
    """Make every draft be the new file that it maps to, on the disk too: all of them, or none.

    Raises:
        CheckpointError: such a file is there meanwhile; it is left as it is.
        OSError: the disk.
    """
    for draft in drafts:
        sync(draft)
    done: list[Path] = []
    try:
        for draft, out in drafts.items():
            _rename_to_new(draft, out)
            done.append(out)
        for folder in {out.parent for out in drafts.values()}:
            sync(folder)
    except BaseException:
        for out in done:
            out.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _rename_to_new(draft: Path, out: Path) -> None:
    """A rename would replace what is there; a second name, where the file system has such, does not."""
    try:
        out.hardlink_to(draft)
    except OSError:
        if os.path.lexists(out):
            raise CheckpointError(
                "the output file must not exist yet",
                values=f"{out}, which was not there at the start",
                remedy="Choose another or remove it",
            ) from None
        draft.rename(out)
    else:
        draft.unlink()
