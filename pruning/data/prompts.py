"""Prompt files: questions that a model is to answer itself, as LLaVA-format items, a plain list, or lines of text.

    [{"id": "7", "image": "images/7.png", "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}]}]
    ["What ...?", {"id": "8", "prompt": "What ...?", "image": "images/8.png"}]

Every message of a human is a question, asked in order; answers that an item has already are ignored. A file that ends
in `.txt` has one prompt a line, blank lines left out. Without an `id`, a prompt is called by its place, from 0. What an
item says of the kinds of its questions goes along with the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pruning.data.conversations import (
    EACH_KIND,
    KINDS_OF_ALL,
    Conversation,
    Turn,
    check_image,
    image_and_texts,
    read_items,
)
from pruning.errors import DatasetError

_FORMS = (
    'a text, {"prompt": TEXT, "image": PATH if there is one}, or a LLaVA-format item with messages '
    '{"from": "human", "value": TEXT}'
)
_NUM_NAMED = 3
"""How many of the things that are wrong a message names."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Questions about one image (or none), plain text without the image placeholder.

    Attributes:
        named: what the item says of the kinds of its questions: `kinds`, one each, `kind` or `category`.
    """

    id: str
    image: Path | None
    questions: tuple[str, ...]
    named: dict[str, Any] = field(default_factory=dict, compare=False)

    def kinds_of(self, num_answers: int) -> dict[str, Any]:
        """What an item of the first `num_answers` questions says of their kinds, as this one's does."""
        return {key: kinds[:num_answers] if key == EACH_KIND else kinds for key, kinds in self.named.items()}

    def answered(self, answers: Sequence[str]) -> Conversation:
        """The first questions with `answers`, as many as there are."""
        turns = tuple(Turn(q, a) for q, a in zip(self.questions, answers, strict=False))
        return Conversation(self.id, self.image, turns)

    def copies(self, count: int) -> "list[Prompt]":
        """As many prompts, alike but for their ids: `7.1`, `7.2`, ...; one alone keeps its id."""
        if count == 1:
            return [self]
        return [replace(self, id=f"{self.id}.{number}") for number in range(1, count + 1)]

    def asked(self, answers: Sequence[str]) -> Conversation:
        """`answered`, and the question after them with an empty answer."""
        return self.answered([*answers, ""])


def load_prompts(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a file (None: all); pictures are there and are pictures.

    Raises:
        DatasetError: names the file, the item and the rule it breaks; of images that are missing, the first few.
    """
    path = Path(path)
    items = _lines(path) if path.suffix.lower() == ".txt" else read_items(path, "prompts")
    prompts = [_parse(item, index, path) for index, item in enumerate(items[:limit])]
    _check_ids(prompts, path)
    _check_images(prompts)
    return prompts


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DatasetError("the prompts file must be readable", values=f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError("a prompts file is text in UTF-8", values=f"{path}: {error}") from error
    found = [line.removesuffix("\r") for line in lines if line.strip()]
    if not found:
        raise DatasetError("a prompts file has one prompt a line", values=f"{path}: no line with text")
    return found


def _parse(item: Any, index: int, path: Path) -> Prompt:
    where = f"{path}, item {index}"
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, dict) or ("prompt" in item) == ("conversations" in item):
        raise DatasetError(f"a prompt is {_FORMS}", values=where)
    found = item.get("id")
    name = str(index if found is None else found)
    where = f"{where} (id {name})"
    values = _questions(item["conversations"], where) if "conversations" in item else [item["prompt"]]
    if not all(isinstance(value, str) for value in values):
        raise DatasetError("a prompt is a text", values=where)
    image, texts = image_and_texts(item, values, where)
    for position, text in enumerate(texts):
        # A picture may be the whole question.
        if not text and (image is None or position > 0):
            raise DatasetError("a prompt must not be empty", values=where)
    return Prompt(name, path.parent / image if image is not None else None, tuple(texts), _kinds(item, len(texts)))


def _kinds(item: dict[str, Any], num_questions: int) -> dict[str, Any]:
    """By key; what is not of the form that readers of kinds take is left out, as they do."""
    found = {key: item[key] for key in KINDS_OF_ALL if isinstance(item.get(key), str)}
    each = item.get(EACH_KIND)
    if isinstance(each, list) and len(each) == num_questions and all(isinstance(kind, str) for kind in each):
        found[EACH_KIND] = each
    return found


def _questions(messages: Any, where: str) -> list[Any]:
    """What the human says in an item's messages."""
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and message.get("from") in ("human", "gpt") for message in messages
    ):
        raise DatasetError('messages are {"from": "human"} or {"from": "gpt"}', values=where)
    questions = [message.get("value") for message in messages if message["from"] == "human"]
    if not questions:
        raise DatasetError('an item has a message {"from": "human"}', values=where)
    return questions


def _check_ids(prompts: Sequence[Prompt], path: Path) -> None:
    places: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        places.setdefault(prompt.id, []).append(index)
    doubled = {name: items for name, items in places.items() if len(items) > 1}
    if doubled:
        first = ", ".join(f"{name!r} is of items {items}" for name, items in list(doubled.items())[:_NUM_NAMED])
        raise DatasetError(
            "every prompt has an id of its own",
            values=f"{path}: {len(doubled)} ids stand for several: {first}",
            remedy="Rename them, or leave the ids out: prompts are numbered then",
        )


def _check_images(prompts: Sequence[Prompt]) -> None:
    missing = [prompt for prompt in prompts if prompt.image is not None and not prompt.image.exists()]
    if missing:
        first = ", ".join(f"{prompt.image} (id {prompt.id})" for prompt in missing[:_NUM_NAMED])
        raise DatasetError(
            "every image that the prompts file names must exist",
            values=f"{len(missing)} of {sum(prompt.image is not None for prompt in prompts)} missing: {first}",
            remedy="Image paths are relative to the prompts file. Answers that are finished stay: put the images "
            "there, and run the same command again",
        )
    for prompt in prompts:
        check_image(prompt.asked([]))
