"""What a chat template writes around what a user says: after its beginning a model says what a user might ask.

As Magpie does (Xu et al., arXiv 2406.08464): an instruction-tuned model that is given its template up to there goes on
with a prompt of the kind that it was trained on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.checkpoints.processor import tokenizer_of
from pruning.data.chat_rendering import prompt_of
from pruning.data.conversations import Conversation, Turn
from pruning.errors import CheckpointError

if TYPE_CHECKING:
    from pruning.checkpoints.processor import Processor

_SAID = "LOPUSERTURN"
"""Stands where a user speaks; templates trim spaces, and none writes this itself."""


@dataclass(frozen=True, slots=True)
class UserTurn:
    """The beginning of a conversation, without what the user says.

    Attributes:
        before: text up to where the user speaks, a picture's placeholder included.
        ends: tokens that end it.
        stop: text that ends it, where no token of the template's own does (`ASSISTANT:`); else empty.
    """

    before: str
    ends: frozenset[int]
    stop: str


def user_turn(processor: "Processor", image: Path | None = None) -> UserTurn:
    """What the chat template writes around the first thing that a user says, about `image` if that is given.

    Raises:
        CheckpointError: there is no chat template, or none from which a model could tell that a user speaks.
        DatasetError: it does not take what a user says, or the model takes no pictures.
    """
    rendered = prompt_of(Conversation("of what users say", image, (Turn(_SAID, ""),)), 0, processor)
    before, *after = rendered.split(_SAID)
    # A space of its own is no token of words that follow it: they begin with it.
    before = before.rstrip(" ")
    if len(after) != 1 or not before:
        raise CheckpointError(
            "to draw prompts, the chat template must write something before what a user says, and write that once",
            values=repr(rendered.replace(_SAID, "...")[:200]),
            remedy="Write prompts yourself, one a line in a .txt file: lop data answer --prompts",
        )
    tokenizer = tokenizer_of(processor)
    first = tokenizer(after[0].lstrip(), add_special_tokens=False)["input_ids"][:1]
    # Markers of templates are added tokens; not every tokenizer calls them special (DeepSeek's does not).
    ends = frozenset(token for token in first if token in tokenizer.added_tokens_decoder)
    # Not the thoughts that it opens: what ends with a thought would be taken for one.
    stop = after[0].partition("<think>")[0].strip()
    return UserTurn(before, ends, "" if ends else stop.partition("\n")[0])
