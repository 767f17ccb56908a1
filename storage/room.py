"""Whether more can be written: tried, since free space is not all that it takes (quotas, a disk that is read-only)."""

import os
import tempfile
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text

PROBE_BYTES: Final = 256 * 1024
"""More than the log of a plan, a job or its progress takes."""

# A function's rows beyond work_mem go to a file of temp_tablespaces, by default on the disk of the database. Unlike any
# table, even a temporary one, that takes no transaction id: what asks for commits (storage.commit_marks) sees none, and
# nothing is left to be vacuumed.
_SPILLING: Final = (
    "SET LOCAL work_mem = '64kB'",
    "SELECT count(*) FROM generate_series(1, 20000)",
)


def try_folder(folder: Path) -> None:
    """Write a file that has no name, or none for long, and is gone afterwards. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder, prefix=".lop-probe-") as file:
        file.write(os.urandom(PROBE_BYTES))  # no file system makes less of it
        file.flush()


def try_sqlite(path: Path) -> None:
    """Whether a database file, and the log beside it, could grow. Raises OSError.

    The file itself is not opened, and not written to: see `storage.sqlite.create_file`, and a commit would be one.
    """
    try_folder(path.parent)
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path.name} cannot be written to")


def try_postgresql(connection: Connection) -> bool:
    """Whether transactions may write at all; raises DBAPIError if a file on the server's disk cannot be written."""
    for statement in _SPILLING:
        connection.execute(text(statement))
    return bool(connection.scalar(text("SELECT current_setting('transaction_read_only') = 'off'")))
