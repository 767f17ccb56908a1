"""Files that were never downloaded: without git-lfs, `git clone` leaves a small text in the place of a large file."""

from fnmatch import fnmatch
from pathlib import Path

from pruning.errors import CheckpointError

_BEGINNING = b"version https://git-lfs"
_MOST_BYTES = 1024  # the format's own limit
_NEEDED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt")

REMEDY = "Fetch the files with `git lfs pull`, or download them again"


def is_pointer(path: Path) -> bool:
    """Whether `path` is such a text; False for what cannot be read, which whoever needs it will say."""
    try:
        if not len(_BEGINNING) <= path.stat().st_size <= _MOST_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except (OSError, ValueError):
        return False


def check_fetched(folder: Path, *more: Path) -> None:
    """Raises CheckpointError if configs, tokenizer or processor of a checkpoint, or the files `more`, are pointers."""
    try:
        small = [path for path in folder.iterdir() if any(fnmatch(path.name.lower(), x) for x in _NEEDED)]
    except OSError:
        small = []
    pointers = sorted({path.name for path in (*small, *more) if is_pointer(path)})
    if pointers:
        raise CheckpointError(
            "a checkpoint's files must be there themselves, not git-lfs's pointers to them",
            values=f"{folder}: {', '.join(pointers[:8])}{' ...' if len(pointers) > 8 else ''}",
            remedy=REMEDY,
        )
