"""Whose fault it is: what the file system says of a source or of an output, as a CheckpointError that names it."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruning.errors import CheckpointError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUST = re.compile(r"\(os error (\d+)\)")
"""How Rust prints an error of the system, which is all that safetensors and tokenizers say of one."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Makes of what the file system refuses a CheckpointError about the source `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            "the checkpoint's files must be readable", values=f"{path}: {error.strerror or error}"
        ) from error


@contextmanager
def writing(out: Path, *, what: str = "pruned checkpoint", draft: Path | None = None) -> Iterator[None]:
    """Makes of what the file system refuses a CheckpointError about the output `out`.

    If `draft` is there when the block fails on files, it is worth going on with, and the message says so.
    """
    try:
        yield
    except CheckpointError as error:
        if not isinstance(error.__cause__, OSError) or not _is_kept(draft):
            raise
        remedy = f"{error.remedy}. " if error.remedy else ""
        raise CheckpointError(error.rule, values=error.values, remedy=remedy + _go_on(draft)) from error.__cause__
    except Exception as error:
        found = os_error(error)
        if found is None:
            raise
        if found.errno in _NO_ROOM:
            rule, rest = f"the disk must have room for the {what}", "Nothing was left there; free some room"
            advice = f"Free some room. {_go_on(draft)}" if _is_kept(draft) else rest + ", or choose another disk"
            raise CheckpointError(rule, values=f"{out}: {found.strerror}", remedy=advice) from error
        raise CheckpointError(
            "the output must be writable",
            values=f"{found.filename or out}: {found.strerror or found}",
            remedy=_go_on(draft) if _is_kept(draft) else "",
        ) from error


def os_error(error: BaseException) -> OSError | None:
    """The error of the system in `error`, which may be one that a library written in Rust met; None if it is none."""
    if isinstance(error, OSError):
        return error
    found = _RUST.search(str(error))
    return None if found is None else OSError(int(found[1]), str(error).strip())


def _is_kept(draft: Path | None) -> bool:
    return draft is not None and draft.is_dir()


def _go_on(draft: Path | None) -> str:
    return f"What is finished is in {draft}: run the same command to go on, or remove it"
