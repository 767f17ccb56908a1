"""What kind of question each turn of a conversation file is, where the file says so.

An item may say `"kinds": [...]`, one a turn, or `"kind"` or `"category"` of all its turns. Files without any are usual.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning.data.conversations import EACH_KIND, KINDS_OF_ALL, Conversation, read_items

UNNAMED = "other"


@dataclass(frozen=True)
class Kinds:
    """The kind of each turn of a conversation.

    By the conversation itself, not by its id: items without one are called by their place in their file, and so ids of
    several files, or of one, may be equal.
    """

    of: dict[Conversation, tuple[str, ...]]

    def of_turns(self, conversation: Conversation) -> tuple[str, ...]:
        """One a turn."""
        return self.of.get(conversation, (UNNAMED,) * len(conversation.turns))

    def of_whole(self, conversation: Conversation) -> str:
        """The kind of all its turns; empty if they are of several."""
        found = set(self.of_turns(conversation))
        return found.pop() if len(found) == 1 else ""


def read_kinds(path: Path, conversations: Sequence[Conversation]) -> Kinds | None:
    """The kinds that the file at `path` names for `conversations`, which are all of its; None if it names none."""
    named = {
        conversation: kinds
        for conversation, item in zip(conversations, read_items(path), strict=True)
        if (kinds := _kinds_of(item, len(conversation.turns)))
    }
    return Kinds(named) if named else None


def _kinds_of(item: dict[str, Any], num_turns: int) -> tuple[str, ...]:
    each = item.get(EACH_KIND)
    if isinstance(each, list) and len(each) == num_turns and all(isinstance(x, str) for x in each):
        return tuple(each)
    of_all = next((item[name] for name in KINDS_OF_ALL if isinstance(item.get(name), str)), None)
    return () if of_all is None else (of_all,) * num_turns
