"""Whether an output can be written: checked before anything is."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pruning.atomic_file import check_name
from pruning.errors import CheckpointError


def check_place(out: Path, *, source: Path | None = None) -> None:
    """Raises CheckpointError unless `out` is absent, not inside the checkpoint `source`, and where one can write."""
    check_name(out)
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


def check_room(needed_bytes: Mapping[Path, int], *, what: str = "pruned checkpoint") -> None:
    """Raises CheckpointError unless there is room for every output, of so many bytes, at its place.

    Outputs on one file system share what is free there.
    """
    needed: dict[int, int] = {}
    for out, num_bytes in needed_bytes.items():
        folder = _nearest_ancestor(out)
        device = folder.stat().st_dev
        needed[device] = needed.get(device, 0) + num_bytes
        free = shutil.disk_usage(folder).free
        if free < needed[device]:
            raise CheckpointError(
                f"the disk must have room for the {what}",
                values=f"{out}: {needed[device]:,} bytes needed, {free:,} free",
                remedy="Free some, or choose a folder on another disk",
            )


@contextmanager
def folders_above(out: Path) -> Iterator[None]:
    """The folders above `out` are made; those that are new and still empty when the block fails are removed."""
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _nearest_ancestor(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))
