"""Answers that are finished, in a file beside the one that they are to be written to: a killed run loses one batch.

The first line says what the file is, every other one is a batch: what decides it as a digest, and its answers. A line
without its end is of a run that was killed while it wrote; it does not count. Batches that were asked otherwise (of
another model, with other prompts) stay, so that a run that is set right again finds them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pruning.cutting.streaming.lock import locked_file
from pruning.errors import DatasetError
from pruning.measuring.answers import Answer

_HEADER = b'{"lop_draft": "answers", "format": 1}\n'


def draft_file(out: Path) -> Path:
    """Where answers wait until `out` can be written.

    Its name is longer than the one under which `out` is written at last: a name that is too long is told at once.
    """
    return out.with_name(f".{out.name}.part-answers.jsonl")


@contextmanager
def locked_answers(out: Path) -> Iterator["AnswerDraft"]:
    """The finished answers for `out`, for this process alone; the file goes when it holds none.

    Raises:
        CheckpointError: another process writes `out`, or what is in the draft's place is a link or no regular file.
        DatasetError: what is there is no draft, or the file system refuses.
    """
    path = draft_file(out)
    try:
        with locked_file(path, out) as file:
            draft = AnswerDraft(path, file)
            try:
                yield draft
            finally:
                if not draft.is_kept:
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(
            "answers must be writable",
            values=f"{error.filename or path}: {error.strerror or error}",
            remedy="What is finished is kept: free some room or mend the folder, and run the same command again",
        ) from error


class AnswerDraft:
    """A draft that this process has locked. `is_kept`: the file is to stay when it is let go of."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        # Nothing is lost if not even the header was finished.
        if not whole and not _HEADER.startswith(content):
            raise _none_of_ours(path, "its first line")
        self._batches = _parse(whole, path)
        self._size = len(whole)
        self.is_kept = bool(self._batches)

    def find(self, key: str) -> list[Answer] | None:
        """The answers of a batch, if they are finished."""
        return self._batches.get(key)

    def add(self, key: str, answers: Sequence[Answer]) -> None:
        """Store a batch; it is on the disk when this returns. Raises OSError."""
        record = {"batch": key, "answers": [[answer.text, answer.is_cut] for answer in answers]}
        line = json.dumps(record).encode() + b"\n"
        if self._size == 0:
            line = _HEADER + line
        self._file.seek(self._size)
        self._file.truncate()
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._size += len(line)
        self._batches[key] = list(answers)
        self.is_kept = True

    def discard(self) -> None:
        """The answers are where they were to go: the file is not needed any more."""
        self.is_kept = False


def _parse(content: bytes, path: Path) -> dict[str, list[Answer]]:
    header, *lines = content.splitlines(keepends=True) or [_HEADER]
    if header != _HEADER:
        raise _none_of_ours(path, "its first line")
    batches = {}
    for number, line in enumerate(lines, 2):
        try:
            record = json.loads(line)
            answers = [Answer(text, is_cut) for text, is_cut in record["answers"]]
            key = record["batch"]
            if not all(isinstance(x.text, str) and isinstance(x.is_cut, bool) for x in answers):
                raise ValueError("an answer is a text, and whether it was cut")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _none_of_ours(path, f"line {number}") from error
        batches[str(key)] = answers
    return batches


def _none_of_ours(path: Path, where: str) -> DatasetError:
    return DatasetError(
        "what is in the place of unfinished answers must be a draft of them",
        values=f"{path}, {where}",
        remedy=f"Remove {path}, or choose another --out",
    )
