"""Whether an output folder can be written: checked before anything is."""

import os
import shutil
from pathlib import Path

from pruning.errors import CheckpointError


def check_place(out: Path, *, source: Path | None = None) -> None:
    """Raises CheckpointError unless `out` is absent, not inside the checkpoint `source`, and where one can write."""
    if os.path.lexists(out):
        raise CheckpointError(
            "the output folder must not exist yet", values=str(out), remedy="Choose another or remove it"
        )
    if source is not None and out.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(
            "the output folder must be outside of the model's",
            values=f"{out} in {source}",
            remedy="Choose another: the input is never touched",
        )
    ancestor = _nearest_ancestor(out)
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        kind = "is not writable" if ancestor.is_dir() else "is no folder"
        raise CheckpointError("the output folder must be writable", values=f"{out}: {ancestor} {kind}")


def check_room(out: Path, needed_bytes: int) -> None:
    """Raises CheckpointError unless the file system of `out` has `needed_bytes` free."""
    free = shutil.disk_usage(_nearest_ancestor(out)).free
    if free < needed_bytes:
        raise CheckpointError(
            "the disk must have room for the pruned checkpoint",
            values=f"{out}: {needed_bytes:,} bytes needed, {free:,} free",
            remedy="Free some, or choose a folder on another disk",
        )


def _nearest_ancestor(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))
