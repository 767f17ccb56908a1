"""Conversation files in the format LLaVA users have: a JSON list beside image files.

    [{"id": "7", "image": "images/7.png",
      "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}]}]

Text-only conversations leave `image` out. Extra keys are ignored.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.lfs_pointers import REMEDY, is_pointer
from pruning.data.picture_files import check_header, is_turned_by_metadata, open_upright
from pruning.errors import DatasetError
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_TOKEN = "<image>"

EACH_KIND = "kinds"
"""A list in an item: what kind of question each turn is, where the file says so."""
KINDS_OF_ALL = ("kind", "category")
"""A text in an item: the kind of all its turns."""

_OTHER_KEYS = ("video", "videos", "audio", "audios", "sound", "speech", "images")
"""What data sets call other media, and several pictures: without them, conversations would be mere words."""
_OTHER_PLACEHOLDERS = re.compile(r"<(?:video|audio|sound|speech)>")

# Below this many answers, a ranking of channels or configurations is mostly noise.
MIN_ANSWERS = 64


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, both plain text without the image placeholder."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers about one image (or none)."""

    id: str
    image: Path | None
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, Any]]:
        """As `processor.apply_chat_template` takes them: the image stands before the first question."""
        messages: list[dict[str, Any]] = []
        for index, turn in enumerate(self.turns):
            image = [{"type": "image"}] if index == 0 and self.image is not None else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages

    def open_image(self) -> "Image | None":
        """The picture upright and in RGB; raises DatasetError if the file is damaged, or RGB would not show it."""
        if self.image is None:
            return None
        with _naming(self):
            return open_upright(self.image)


def load_conversations(path: str | Path, limit: int | None = None) -> list[Conversation]:
    """Read and check the first `limit` conversations of a file (None: all of them).

    Image files are checked, too: that they are there and can be shown in RGB, not their pixels. The file must be a JSON
    list; what stands in it after the first `limit` items is neither checked nor opened.

    Raises:
        DatasetError: names the file, the conversation and the rule it breaks.
    """
    path = Path(path)
    conversations = [parse_item(item, index, path) for index, item in enumerate(read_items(path)[:limit])]
    for conversation in conversations:
        check_image(conversation)
    return conversations


def read_items(path: Path, kind: str = "conversation") -> list[Any]:
    """The items of a `kind` of file, none of them looked at; raises DatasetError if it is no non-empty JSON list."""
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"the {kind} file must be readable", values=f"{path}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        if is_pointer(path):
            raise DatasetError(
                f"the {kind} file must be there itself, not git-lfs's pointer to it",
                values=str(path),
                remedy=REMEDY,
            ) from error
        raise DatasetError(f"the {kind} file must be JSON", values=f"{path}: {reason_of(error)}") from error
    if not isinstance(items, list) or not items:
        raise DatasetError(f"a {kind} file is a non-empty JSON list", values=str(path))
    return items


def check_image(conversation: Conversation) -> None:
    """Raises DatasetError unless the image file, if it has one, is there and can be shown; pixels are not read."""
    if conversation.image is not None:
        with _naming(conversation):
            check_header(conversation.image)


@contextmanager
def _naming(conversation: Conversation) -> Iterator[None]:
    """Errors about the conversation's picture say whose it is."""
    try:
        yield
    except DatasetError as error:
        values = f"{error.values} (conversation {conversation.id})"
        raise DatasetError(error.rule, values=values, remedy=error.remedy) from error


def calibration_id(conversations: Sequence[Conversation]) -> str:
    """sha256 over texts and image bytes, in order: what a sample was measured on.

    A picture that its metadata turns counts as another than its bytes: earlier versions showed it to models as it lies
    in the file, and what they measured is not to be mixed with what is measured now.
    """
    digest = hashlib.sha256()
    for conversation in conversations:
        for turn in conversation.turns:
            digest.update(json.dumps([turn.question, turn.answer]).encode())
        if conversation.image is not None:
            content = conversation.image.read_bytes()
            digest.update(content)
            if is_turned_by_metadata(content):
                digest.update(b"upright")
        digest.update(b"\0")
    return digest.hexdigest()


def parse_item(item: Any, index: int, path: Path) -> Conversation:
    """The conversation that an item is, its image not looked at; raises DatasetError with the rule that it breaks."""
    where = f"{path}, item {index}"
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise DatasetError("each item has a list `conversations`", values=where)
    name = str(item.get("id", index))
    values: list[str] = []
    for position, message in enumerate(item["conversations"]):
        expected = "human" if position % 2 == 0 else "gpt"
        if (
            not isinstance(message, dict)
            or message.get("from") != expected
            or not isinstance(message.get("value"), str)
        ):
            raise DatasetError(
                'messages alternate {"from": "human"} and {"from": "gpt"}, each with a text `value`',
                values=f"{where} (id {name}), message {position}",
            )
        values.append(message["value"])
    if len(values) < 2 or len(values) % 2:
        raise DatasetError(
            "a conversation ends with an answer",
            values=f"{where} (id {name}), {len(values)} messages",
            remedy="A model answers questions itself: lop data answer --model DENSE --prompts FILE --out ANSWERED",
        )
    image, texts = image_and_texts(item, values, f"{where} (id {name})")
    turns = tuple(Turn(q, a) for q, a in zip(texts[::2], texts[1::2], strict=True))
    if not all(turn.answer for turn in turns):
        raise DatasetError("an answer must not be empty", values=f"{where} (id {name})")
    return Conversation(name, path.parent / image if image is not None else None, turns)


def image_and_texts(item: dict[str, Any], values: Sequence[str], where: str) -> tuple[str | None, list[str]]:
    """An item's image path, and its messages `values` without the placeholder; raises DatasetError about `where`."""
    _check_modalities(item, where)
    for name in ("id", "image"):
        if isinstance(item.get(name), str):
            _check_name(item[name], f"{where}, {name}")
    for position, value in enumerate(values):
        _check_text(value, f"{where}, message {position}")
    image = item.get("image")
    if image is not None and not isinstance(image, str):
        raise DatasetError("an item has one image, as a path", values=f"{where}: {image!r}")
    placeholders = [value.count(IMAGE_TOKEN) for value in values]
    if sum(placeholders) > 1 or any(placeholders[1:]) or (any(placeholders) and image is None):
        raise DatasetError(
            f"an item with an image names it once, as {IMAGE_TOKEN} in its first question",
            values=f"{where}: {sum(placeholders)} placeholders, image {image!r}",
        )
    return image, [re.sub(rf"\s*{IMAGE_TOKEN}\s*", "", value).strip() for value in values]


def _check_modalities(item: dict[str, Any], where: str) -> None:
    found = [key for key in _OTHER_KEYS if item.get(key) and item[key] != [item.get("image")]]
    if found:
        raise DatasetError(
            "a conversation is about one picture, as `image`, or about none",
            values=f"{where}: {', '.join(f'{key} {item[key]!r}'[:80] for key in found)}",
            remedy="Leave out conversations about videos, sound or several pictures",
        )


def without_placeholders(text: str) -> str:
    """What a model wrote, without the placeholders that a conversation file may not have in an answer."""
    return _OTHER_PLACEHOLDERS.sub("", text.replace(IMAGE_TOKEN, ""))


def _check_name(value: str, where: str) -> None:
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise DatasetError(
            "ids and image paths must be Unicode texts without NUL",
            values=f"{where}: {value!a}",
            remedy="Take the character out, or write the whole one",
        )


def _check_text(value: str, where: str) -> None:
    if placeholder := _OTHER_PLACEHOLDERS.search(value):
        raise DatasetError(
            f"the only placeholder is {IMAGE_TOKEN}",
            values=f"{where}: {placeholder[0]}",
            remedy="Leave out conversations about videos or sound, or write the words without angle brackets",
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(
            "texts must be Unicode",
            values=f"{where}: half of a surrogate pair, {value[error.start]!a}, at character {error.start}",
            remedy="Take it out, or write the whole character",
        ) from error
