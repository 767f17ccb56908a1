"""Conversations and their pictures as one file of one form: equal content is equal bytes, and so has one sha256.

A tar file, of `conversations.json` in the format of `pruning.data.conversations` and then `images/SHA256` for every
picture, each once and in the order of their digests. Nothing of the names that a user's files had is in it.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pruning.data.archives import ArchiveLimits, unpack
from pruning.data.bounded_pictures import check_in_bounds
from pruning.data.conversations import IMAGE_TOKEN, Conversation, parse_item, read_items
from pruning.errors import DatasetError

CONVERSATIONS = "conversations.json"
_MEMBER = re.compile(r"conversations\.json|images/[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PackedData:
    """What was packed."""

    sha256: str
    num_conversations: int
    num_answers: int
    num_pictures: int
    size_bytes: int


def pack(conversations: Sequence[Conversation], out: Path) -> PackedData:
    """Write `conversations` with their pictures to the file `out`, which must not be there yet.

    Raises DatasetError for a picture that cannot be read, OSError if `out` cannot be written.
    """
    pictures: dict[str, Path] = {}
    items = []
    for conversation in conversations:
        name = None
        if conversation.image is not None:
            digest = _digest_of(conversation.image)
            pictures[digest] = conversation.image
            name = f"images/{digest}"
        items.append(_item(conversation, name))
    lines = ",\n".join(json.dumps(item, sort_keys=True) for item in items)
    with out.open("xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as packed:
            _add(packed, CONVERSATIONS, f"[\n{lines}\n]\n".encode())
            for digest in sorted(pictures):
                _add(packed, f"images/{digest}", pictures[digest].read_bytes())
        size = file.tell()
    return PackedData(
        sha256=_digest_of(out),
        num_conversations=len(conversations),
        num_answers=sum(len(conversation.turns) for conversation in conversations),
        num_pictures=len(pictures),
        size_bytes=size,
    )


def unpack_packed(packed: Path, folder: Path) -> Path:
    """Unpack what `pack` wrote into the empty `folder`; returns the path of the conversation file there.

    Raises DatasetError if it is anything else.
    """
    (folder / "images").mkdir(parents=True)
    try:
        with tarfile.open(packed, mode="r:") as opened:
            for member in opened:
                if not member.isreg() or not _MEMBER.fullmatch(member.name):
                    raise DatasetError("packed data holds conversations and pictures alone", values=repr(member.name))
                content = opened.extractfile(member)
                assert content is not None
                (folder / member.name).write_bytes(content.read())
    except tarfile.TarError as error:
        raise DatasetError("packed data must be a whole tar file", values=f"{packed.name}: {error}") from error
    return folder / CONVERSATIONS


def pack_archive(archive: Path, out: Path, limits: ArchiveLimits) -> PackedData:
    """Pack what a user's archive holds: one conversation file, in any folder of it, and the pictures that it names.

    What it does not name is left out. Every picture is decoded.

    Raises:
        DatasetError: the archive, the conversation file or a picture breaks a rule or is beyond the limits.
        OSError: nothing can be written beside `out`.
    """
    with TemporaryDirectory(dir=out.parent, prefix="unpacked-") as folder:
        files = unpack(archive, Path(folder), limits)
        name = _conversation_file(files)
        try:
            items = read_items(files[name])
            conversations = [_located(parse_item(item, index, Path(name)), files) for index, item in enumerate(items)]
        except DatasetError as error:
            raise DatasetError(
                error.rule, values=error.values.replace(str(files[name]), name), remedy=error.remedy
            ) from error
        names = {path: name for name, path in files.items()}
        for path in dict.fromkeys(x.image for x in conversations if x.image is not None):
            check_in_bounds(path, limits.picture_pixels, names[path])
        return pack(conversations, out)


def _conversation_file(files: dict[str, Path]) -> str:
    """The name of the only JSON file; those that systems hide beside files do not count."""
    found = [name for name in files if name.lower().endswith(".json") and not _is_hidden(name)]
    if len(found) != 1:
        raise DatasetError(
            "an archive holds one conversation file, whose name ends in .json",
            values=", ".join(repr(name[:60]) for name in found[:5]) or f"none among {len(files)} files",
        )
    return found[0]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _located(conversation: Conversation, files: dict[str, Path]) -> Conversation:
    """With its picture's unpacked file; raises DatasetError if that is not in the archive."""
    if conversation.image is None:
        return conversation
    parts: list[str] = []
    for part in conversation.image.as_posix().split("/"):
        if part == "..":
            if not parts:
                parts = [".."]
                break
            parts.pop()
        elif part != ".":
            parts.append(part)
    path = files.get("/".join(parts))
    if path is None:
        raise DatasetError(
            "every image that the file names must be in the archive",
            values=f"{str(conversation.image)[:200]!r} (conversation {conversation.id[:100]})",
            remedy="Image paths are relative to the JSON file",
        )
    return replace(conversation, image=path)


def _item(conversation: Conversation, image: str | None) -> dict[str, Any]:
    item: dict[str, Any] = {"id": conversation.id}
    if image is not None:
        item["image"] = image
    item["conversations"] = messages = []
    for index, turn in enumerate(conversation.turns):
        question = f"{IMAGE_TOKEN}\n{turn.question}" if index == 0 and image is not None else turn.question
        messages.append({"from": "human", "value": question})
        messages.append({"from": "gpt", "value": turn.answer})
    return item


def _add(packed: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file without an owner or a time."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    packed.addfile(member, io.BytesIO(content))


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError("every image must be readable", values=f"{path}: {error.strerror}") from error
