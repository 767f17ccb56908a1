"""What a conversation file holds, and what is odd in it: all items, where `load_conversations` stops at a fault.

An error is what a command refuses the file for; a warning is what it takes, and may not be meant.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from pruning.data.conversations import MIN_ANSWERS, Conversation, parse_item, read_items
from pruning.data.picture_facts import Picture, read_picture
from pruning.data.token_counts import TokenCounts, count_tokens, max_positions
from pruning.errors import DatasetError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pruning.checkpoints.processor import Processor

_LONG_CHARACTERS, _LONG_TIMES = 1000, 10
"""An answer is called very long if it has more characters than that, and more times the median's."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that items break.

    Attributes:
        items: their places in the file, from 0; empty: it is about the whole file.
        values: what was found.
    """

    rule: str
    values: str
    items: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median and greatest of some numbers."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Self | None:
        """None if there are no numbers."""
        found = sorted(numbers)
        return cls(found[0], median(found), found[-1]) if found else None


@dataclass(frozen=True)
class DataReport:
    """Counts are of the items that keep to the format.

    Attributes:
        num_items: all of the file.
        pictures: of the conversations that have a readable one, in order.
        num_missing, num_unreadable: conversations whose picture is not there, or is none.
        tokens: of each conversation that the model takes; None: no model was asked.
    """

    num_items: int
    conversations: tuple[Conversation, ...]
    pictures: tuple[Picture, ...]
    num_missing: int
    num_unreadable: int
    tokens: tuple[TokenCounts, ...] | None
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    @property
    def answers(self) -> list[str]:
        """Of all conversations, in order."""
        return [turn.answer for conversation in self.conversations for turn in conversation.turns]


@dataclass
class _Item:
    """An item that keeps to the format, and what else is known of it."""

    place: int
    conversation: Conversation
    picture: Picture | None = None
    tokens: TokenCounts | None = None


def check_data(
    path: Path,
    *,
    processor: "Processor | None" = None,
    config: "PreTrainedConfig | None" = None,
    on_item: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Check every item of a conversation file; with a model's processor and config, its tokens too.

    `on_item(done, total)` is told of progress.

    Raises:
        DatasetError: the file cannot be read, or is no list.
        CheckpointError: the model has no chat template.
    """
    raw = read_items(path)
    items: list[_Item] = []
    errors: list[Finding] = []
    seen: dict[Path, Picture | DatasetError | None] = {}
    for place, one in enumerate(raw):
        try:
            item = _Item(place, parse_item(one, place, path))
            items.append(item)
            item.picture = _picture(item.conversation, seen)
            if processor is not None and config is not None:
                item.tokens = count_tokens(item.conversation, processor, config)
        except DatasetError as error:
            errors.append(Finding(error.rule, _without_place(error.values, f"{path}, item {place}"), (place,)))
        if on_item is not None:
            on_item(place + 1, len(raw))
    unread = [i.conversation.image for i in items if i.conversation.image is not None and i.picture is None]
    num_missing = sum(not image.exists() for image in unread)
    return DataReport(
        num_items=len(raw),
        conversations=tuple(item.conversation for item in items),
        pictures=tuple(item.picture for item in items if item.picture is not None),
        num_missing=num_missing,
        num_unreadable=len(unread) - num_missing,
        tokens=tuple(item.tokens for item in items if item.tokens is not None) if processor is not None else None,
        errors=tuple(errors),
        warnings=tuple(_warnings(raw, items, config)),
    )


def _picture(conversation: Conversation, seen: dict[Path, Picture | DatasetError | None]) -> Picture | None:
    """`read_picture`, once for every file."""
    image = conversation.image
    if image is None:
        return None
    if image not in seen:
        try:
            seen[image] = read_picture(conversation)
        except DatasetError as error:
            seen[image] = error
    found = seen[image]
    if isinstance(found, DatasetError):
        raise found
    return found


def _warnings(raw: Sequence[Any], items: Sequence[_Item], config: "PreTrainedConfig | None") -> list[Finding]:
    answers = [turn.answer for item in items for turn in item.conversation.turns]
    found = []
    if len(answers) < MIN_ANSWERS:
        rule = f"below {MIN_ANSWERS} answers, rankings and scores are mostly noise"
        found.append(Finding(rule, f"{len(answers)} answers"))
    if len(answers) > 1 and len(set(answers)) == 1:
        found.append(Finding("answers should differ", f"all {len(answers)} are {_short(answers[0])}"))
    found += _about_ids(raw, items)
    found += _about_repetition(items)
    found += _about_texts(items, answers)
    found += _about_pictures(items)
    if config is not None:
        found += _about_lengths(items, config)
    return found


def _about_ids(raw: Sequence[Any], items: Sequence[_Item]) -> list[Finding]:
    given = {item.place: raw[item.place].get("id") for item in items}
    found = []
    strange = [place for place, name in given.items() if name is not None and not isinstance(name, str)]
    if strange:
        found.append(Finding("ids should be texts", f"{_short(given[strange[0]])} is read as a text", tuple(strange)))
    if doubled := _repeated((item.place, item.conversation.id) for item in items):
        first = next(item.conversation.id for item in items if item.place == doubled[0])
        found.append(Finding("every conversation should have an id of its own", f"{first} again", tuple(doubled)))
    return found


def _about_repetition(items: Sequence[_Item]) -> list[Finding]:
    """Whole conversations that are there before, and questions of the others."""
    found = []
    again = _repeated((item.place, (_shown(item), item.conversation.turns)) for item in items)
    if again:
        found.append(Finding("conversations should differ", "there before, word for word", tuple(again)))
    keys = [
        # About a picture, a question is the same wherever it is asked; without one, it is about what was said before.
        (item.place, (_shown(item), () if item.conversation.image else item.conversation.turns[:turn], asked.question))
        for item in items
        if item.place not in again
        for turn, asked in enumerate(item.conversation.turns)
    ]
    if asked_again := _repeated(keys):
        rule = "a question about the same picture, or after the same words, should be asked once"
        found.append(Finding(rule, "asked before", tuple(asked_again)))
    return found


def _about_texts(items: Sequence[_Item], answers: Sequence[str]) -> list[Finding]:
    found = []
    limit = max(_LONG_CHARACTERS, _LONG_TIMES * median(map(len, answers))) if answers else 0
    long = {i.place: max(len(t.answer) for t in i.conversation.turns) for i in items}
    if places := tuple(place for place, length in long.items() if length > limit):
        most = max(long[place] for place in places)
        found.append(Finding("an answer is very long", f"up to {most:,} characters", places))
    silent = tuple(i.place for i in items if any(not turn.question for turn in i.conversation.turns))
    if silent:
        found.append(Finding("a question should have words", "empty", silent))
    return found


def _about_pictures(items: Sequence[_Item]) -> list[Finding]:
    found = []
    turned = tuple(i.place for i in items if i.picture is not None and i.picture.is_turned)
    if turned:
        found.append(Finding("a picture should lie upright in its file", "its EXIF data say otherwise", turned))
    return found


def _about_lengths(items: Sequence[_Item], config: "PreTrainedConfig") -> list[Finding]:
    positions = max_positions(config)
    lengths = {item.place: item.tokens.total for item in items if item.tokens is not None}
    over = tuple(place for place, length in lengths.items() if positions is not None and length > positions)
    if positions is None or not over:
        return []
    most = max(lengths[place] for place in over)
    return [
        Finding("a conversation should fit the model's positions", f"up to {most:,} tokens, of {positions:,}", over)
    ]


def _repeated(keys: Iterable[tuple[int, Hashable]]) -> list[int]:
    """The places whose key was there before, each once."""
    seen: set[Hashable] = set()
    places: dict[int, None] = {}
    for place, key in keys:
        if key in seen:
            places[place] = None
        seen.add(key)
    return list(places)


def _shown(item: _Item) -> Hashable:
    """What picture an item shows: its content where it was read."""
    return item.picture.sha256 if item.picture is not None else item.conversation.image


def _without_place(values: str, place: str) -> str:
    """What an error found, without the file and item that a finding names by itself."""
    rest = values.removeprefix(place).lstrip(" ,:")
    return rest.replace("(", "", 1).replace(")", "", 1) if rest.startswith("(id ") else rest


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
