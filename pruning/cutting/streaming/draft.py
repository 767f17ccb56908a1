"""The folder in which a checkpoint is written: beside its place, under a name that follows from it.

A run that is killed, or stopped by a full disk, leaves it behind; the same run goes on with the weight files that are
whole. The file beside it says what the draft is of, and is locked by the run that writes: `out` is whole or absent, and
one run makes it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pruning.anatomy.architecture import Architecture
from pruning.atomic_file import beside
from pruning.checkpoints.file_errors import os_error, reading
from pruning.checkpoints.headers import StoredTensor
from pruning.cutting.streaming.lock import locked_file
from pruning.cutting.streaming.place import check_place, folders_above
from pruning.cutting.streaming.publish import publish_folder
from pruning.errors import CheckpointError
from pruning.planning.ranking import Ranking

_FORMAT = 2
"""Of the weight files in a draft; a draft of another is begun anew."""

_KIND = "lop_draft"
"""The key that tells the state of a draft from any other JSON; it says what is being written."""

_MAX_STATE_BYTES = 2**16

Contents = Mapping[str, str | int]
"""What a draft is of: two drafts with equal contents have equal weight files."""

SAVED_MODEL: Contents = {_KIND: "a model in memory"}
"""Of a draft that nothing can be resumed of: a model in memory is saved in one go."""


def draft_folder(out: Path) -> Path:
    """Where `out` is written until it is whole."""
    return beside(out, ".part")


def draft_contents(
    architecture: Architecture,
    ranking: Ranking,
    stored: Mapping[str, StoredTensor],
    *,
    max_shard_size: int,
    calibration_id: str | None = None,
    rounded_on: str | None = None,
) -> Contents:
    """What decides every byte of the weight files; the source counts by its headers, and its files' sizes and times.

    `calibration_id`: of what weights are solved anew on; None where they are only cut. `rounded_on`: of what they are
    rounded on by GPTQ; None where they are to nearest, or not at all.

    Raises CheckpointError if a weight file is gone.
    """
    return {
        _KIND: "a pruned checkpoint",
        "format": _FORMAT,
        "architecture": architecture.key,
        "ranking": ranking.sha256,
        "source": _source_digest(stored),
        "max_shard_size": max_shard_size,
        **({} if calibration_id is None else {"reconstruction": calibration_id}),
        **({} if rounded_on is None else {"gptq": rounded_on}),
    }


def rewritten_contents(recipe: str, stored: Mapping[str, StoredTensor], *, max_shard_size: int) -> Contents:
    """As `draft_contents`, of weights that are made anew where they stand; `recipe` says how, as canonical JSON."""
    return {
        _KIND: "a rewritten checkpoint",
        "format": _FORMAT,
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
        "source": _source_digest(stored),
        "max_shard_size": max_shard_size,
    }


def _source_digest(stored: Mapping[str, StoredTensor]) -> str:
    """Of headers, and of the files' sizes and times."""
    source = hashlib.sha256()
    for tensor in sorted(stored.values(), key=lambda x: x.name):
        source.update(repr((tensor.header, tensor.path.name, tensor.offset)).encode())
    for path in sorted({tensor.path for tensor in stored.values()}):
        with reading(path):
            status = path.stat()
        source.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    return source.hexdigest()


@contextmanager
def locked_draft(out: Path, contents: Contents) -> Iterator["Draft"]:
    """The draft of `out`, for this process alone. The folders above `out` are made; an error removes them again.

    Raises:
        CheckpointError: another process writes `out`, `out` exists, or what is in the draft's place is something else.
        OSError: the folder of `out` is not writable.
    """
    state = beside(out, ".part.json")
    folder = draft_folder(out)
    with folders_above(out), locked_file(state, out) as file:
        found = _state_of(file, folder, state)
        try:
            check_place(out)
            yield Draft(out, folder, file, found == dict(contents), contents)
        finally:
            if not os.path.lexists(folder):
                state.unlink(missing_ok=True)


def _state_of(file: BinaryIO, folder: Path, state: Path) -> dict[str, Any] | None:
    """What `folder` is a draft of, None if it is not there; raises CheckpointError if one of the two is none of ours.

    A run that is killed early leaves `state` empty, but never beside a draft.
    """
    file.seek(0)
    text = file.read(_MAX_STATE_BYTES)
    try:
        found: Any = json.loads(text) if text else None
        is_ours = not text or (isinstance(found, dict) and _KIND in found)
    except (ValueError, RecursionError):
        is_ours = False
    if not is_ours:
        raise _none_of_ours(state, "which is no state of a draft")
    if not os.path.lexists(folder):
        return None
    if found is None or folder.is_symlink() or not folder.is_dir():
        raise _none_of_ours(folder, f"of which {state.name} says nothing")
    return dict(found)


def _none_of_ours(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        "what is in the draft's place must be a draft",
        values=f"{path}, {reason}",
        remedy=f"Remove {path}, or choose another output folder",
    )


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
        return self._whole(sizes) if self.resumes else frozenset()

    def _whole(self, sizes: Mapping[str, int]) -> frozenset[str]:
        places = {name: self.folder / name for name in sizes}
        return frozenset(n for n, path in places.items() if path.is_file() and path.stat().st_size == sizes[n])

    def make_way(self, sizes: Mapping[str, int]) -> None:
        """Remove what an earlier run left, but for those of the weight files `sizes` that are finished."""
        finished = self.finished(sizes)
        if self.folder.exists() and not self.resumes:
            shutil.rmtree(self.folder)
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in finished:
                path.unlink()

    @contextmanager
    def writing(self, sizes: Mapping[str, int]) -> Iterator[Path]:
        """The folder to write to, empty but for those of the weight files `sizes` that are finished.

        When the block ends well, it becomes `out`. Where the file system stops it (a full disk, a source that cannot be
        read) and weight files are finished, the draft stays, to be gone on with, as it does after an interrupt or the
        death of the process. Any other error removes it: running it again would not end better.
        """
        self.make_way(sizes)
        if not self.resumes:
            self._state.seek(0)
            self._state.truncate()
            self._state.write(json.dumps(dict(self._contents)).encode())
            self._state.flush()
            os.fsync(self._state.fileno())
            self.folder.mkdir()
        try:
            yield self.folder
            publish_folder(self.folder, self.out)
        except Exception as error:
            of_files = os_error(error) is not None or isinstance(error.__cause__, OSError)
            if not (of_files and self._whole(sizes)):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
