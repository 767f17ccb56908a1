"""The files of an export: written beside their places, and seen there only when all of them are whole."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pruning.atomic_file import beside, check_name, draft_of
from pruning.checkpoints.file_errors import writing
from pruning.cutting.gguf.writer import GgufFile, write_gguf
from pruning.cutting.streaming.lock import locked_file
from pruning.cutting.streaming.place import check_room
from pruning.cutting.streaming.publish import publish_files
from pruning.errors import CheckpointError

_MAGIC = b"GGUF"
_HEAD_BYTES = 2**20  # of metadata besides the tokens, at most


def check_outputs(outputs: Sequence[Path]) -> None:
    """Raises CheckpointError if an output is taken, or its folder is not there."""
    if len({path.resolve() for path in outputs}) != len(outputs):
        raise CheckpointError("each output must be a file of its own", values=", ".join(map(str, outputs)))
    for path in outputs:
        check_name(path)
        if os.path.lexists(path):
            raise CheckpointError(
                "the output file must not exist yet", values=str(path), remedy="Choose another or remove it"
            )
        if not path.parent.is_dir():
            raise CheckpointError("the output's folder must exist", values=str(path.parent))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise CheckpointError("the output's folder must be writable", values=str(path.parent))


def draft_file(out: Path) -> Path:
    """Where `out` is written until it is whole."""
    return beside(out, ".part")


def write_files(
    parts: Sequence[tuple[GgufFile, Path]],
    on_bytes: Callable[[int, int], None] | None,
    texts: Mapping[Path, bytes] | None = None,
) -> list[int]:
    """Write every file; none appears before all are whole and on the disk, and the first of `parts` after all others.
    Returns the sizes of `parts`. `texts` are small files and what they hold.

    An error leaves nothing. No file system gives several files their names at once: a run that is killed just then
    may leave others without the first, never the first without them. Drafts that it has left are overwritten.

    Raises:
        CheckpointError: there is no room, an output cannot be written or appeared meanwhile, another run writes one, or
            a weight cannot be read or stored.
    """
    what = "export"
    total, done = sum(part.data_bytes for part, _ in parts), 0

    def count(written: int) -> None:
        nonlocal done
        done += written
        if on_bytes is not None:
            on_bytes(done, total)

    small = texts or {}
    with writing(parts[0][1], what=what), ExitStack() as stack:
        drafts = {stack.enter_context(_locked_draft(out)): out for _, out in parts}
        check_outputs([*drafts.values(), *small])  # one that another run has just finished
        for draft in drafts:
            os.truncate(draft, 0)  # what a run that was killed left takes room
        sizes = {out: part.data_bytes + _metadata_bytes(part) for part, out in parts}
        check_room(sizes | {out: len(content) for out, content in small.items()}, what=what)
        for (part, _), draft in zip(parts, drafts, strict=True):
            write_gguf(part, draft, on_bytes=count)
        for out, content in small.items():
            drafts[stack.enter_context(_small_draft(out, content))] = out
        publish_files(dict(reversed(drafts.items())))
    return [out.stat().st_size for _, out in parts]


@contextmanager
def _locked_draft(out: Path) -> Iterator[Path]:
    """The draft of `out`, for this process alone; it is gone when the block ends.

    Raises CheckpointError if another process has it, or if what is in its place is something else.
    """
    draft = draft_file(out)
    with locked_file(draft, out) as file:
        begins = file.read(len(_MAGIC))
        if begins != _MAGIC[: len(begins)]:
            raise CheckpointError(
                "what is in the draft's place must be a draft",
                values=f"{draft}, which is no GGUF file",
                remedy=f"Remove {draft}, or choose another output file",
            )
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def _small_draft(out: Path, content: bytes) -> Iterator[Path]:
    """A draft of `out` that holds `content`; it is gone when the block ends."""
    draft = draft_of(out)
    try:
        draft.write_bytes(content)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _metadata_bytes(part: GgufFile) -> int:
    """About what the file's head takes: the words in it, and a few numbers for each."""
    words = (x for value in part.metadata.values() for x in ([value] if isinstance(value, str) else _words(value)))
    return _HEAD_BYTES + sum(len(word.encode()) + 24 for word in words)


def _words(value: object) -> list[str]:
    return [x for x in value if isinstance(x, str)] if isinstance(value, (list, tuple)) else []
