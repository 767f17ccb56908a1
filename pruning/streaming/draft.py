"""The folder in which a checkpoint is written: beside its place, under a name that follows from it.

A run that is killed leaves it behind; the same run goes on with the weight files that are whole. The file beside it
says what the draft is of, and is locked by the run that writes: `out` is whole or absent, and one run makes it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pruning.errors import CheckpointError
from pruning.headers import StoredTensor
from pruning.plan import PruningPlan
from pruning.ranking import Ranking
from pruning.streaming.place import check_place

_FORMAT = 1
"""Of the weight files in a draft; a draft of another is begun anew."""

Contents = Mapping[str, str | int]
"""What a draft is of: two drafts with equal contents have equal weight files."""


def draft_folder(out: Path) -> Path:
    """Where `out` is written until it is whole."""
    return out.with_name(f".{out.name}.part")


def draft_contents(
    plan: PruningPlan, ranking: Ranking, stored: Mapping[str, StoredTensor], *, max_shard_size: int
) -> Contents:
    """What decides every byte of the weight files; the source counts by its headers, and its files' sizes and times.

    Two plans that keep the same and differ in, say, when they were made, have the same weight files.
    """
    source = hashlib.sha256()
    for tensor in sorted(stored.values(), key=lambda x: x.name):
        source.update(repr((tensor.header, tensor.path.name, tensor.offset)).encode())
    for path in sorted({tensor.path for tensor in stored.values()}):
        status = path.stat()
        source.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    return {
        "format": _FORMAT,
        "sizes": hashlib.sha256(repr(plan.sizes).encode()).hexdigest(),
        "ranking": ranking.sha256,
        "source": source.hexdigest(),
        "max_shard_size": max_shard_size,
    }


@contextmanager
def locked_draft(out: Path, contents: Contents) -> Iterator["Draft"]:
    """The draft of `out`, for this process alone; nothing is changed by this.

    Raises:
        CheckpointError: another process writes `out`, `out` exists, or what is in the draft's place is something else.
        OSError: the folder of `out` is not writable.
    """
    state = out.with_name(f".{out.name}.part.json")
    folder = draft_folder(out)
    with _locked(state, out) as file:
        try:
            check_place(out)
            yield Draft(out, folder, file, _is_of(contents, folder, file, state), contents)
        finally:
            if not os.path.lexists(folder):
                state.unlink()


@contextmanager
def _locked(state: Path, out: Path) -> Iterator[BinaryIO]:
    import fcntl

    while True:
        with state.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckpointError(
                    "one run at a time may write an output folder",
                    values=f"another writes {out}",
                    remedy="Wait for it, or choose another folder",
                ) from error
            # A run that just ended may have removed the file between our opening and our locking it.
            if state.exists() and os.path.samestat(state.stat(), os.fstat(file.fileno())):
                yield file
                return


def _is_of(contents: Contents, folder: Path, file: BinaryIO, state: Path) -> bool:
    """Whether the draft that is there, if any, has these contents; raises CheckpointError if it is none of ours."""
    if not os.path.lexists(folder):
        return False
    try:
        file.seek(0)
        found: Any = json.loads(file.read())
        if folder.is_symlink() or not folder.is_dir() or not isinstance(found, dict):
            raise ValueError
    except ValueError:
        raise CheckpointError(
            "what is in the draft's place must be a draft",
            values=f"{folder}, of which {state.name} says nothing",
            remedy=f"Remove {folder}, or choose another output folder",
        ) from None
    return bool(found == dict(contents))


@dataclass(frozen=True)
class Draft:
    """A draft that this process has locked; `resumes` says that its weight files are of these contents."""

    out: Path
    folder: Path
    _state: BinaryIO
    resumes: bool
    _contents: Contents

    def finished(self, sizes: Mapping[str, int]) -> frozenset[str]:
        """Of the weight files `sizes` (bytes by name), those that an earlier run left whole."""
        if not self.resumes:
            return frozenset()
        places = {name: self.folder / name for name in sizes}
        return frozenset(n for n, path in places.items() if path.is_file() and path.stat().st_size == sizes[n])

    @contextmanager
    def writing(self, finished: Collection[str]) -> Iterator[Path]:
        """The folder to write to, empty but for the `finished` files; when the block ends well, it becomes `out`.

        An error removes it, and leaves nothing. An interrupt, or the death of the process, leaves it to be resumed.
        """
        if not self.resumes:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self._state.truncate(0)
            self._state.write(json.dumps(dict(self._contents)).encode())
            self._state.flush()
            os.fsync(self._state.fileno())
            self.folder.mkdir()
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in finished:
                path.unlink()
        try:
            yield self.folder
            publish(self.folder, self.out)
        except Exception:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise


def publish(folder: Path, out: Path) -> None:
    """Make the whole `folder` be `out`, on the disk too. Raises OSError."""
    inside = list(folder.rglob("*"))
    for path in (*inside, folder):
        _sync(path)
    folder.rename(out)
    _sync(out.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
