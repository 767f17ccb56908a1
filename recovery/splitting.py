"""Which conversations are trained on, and which are kept back to decide by."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence

from pruning.data.conversations import Conversation
from pruning.data.folds import MIN_FOLD_SIZE, MIN_FOLDS, fold_numbers
from pruning.errors import DatasetError
from recovery.kinds import Kinds

_ROUGH_LENGTHS = 4
"""Strata by the length of the answers: quarters."""


def held_out(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """What is trained on, and an eighth (of few conversations: a quarter) to decide by; no picture is in both.

    Raises DatasetError if there are too few.
    """
    numbers = fold_numbers(conversations)
    if numbers is None:
        raise DatasetError(
            f"a selection part is kept back from {MIN_FOLDS * MIN_FOLD_SIZE} conversations or more",
            values=f"{len(conversations)} conversations about {len({x.image for x in conversations})} pictures",
            remedy="Give conversations to decide by: --selection FILE",
        )
    parts: tuple[list[Conversation], list[Conversation]] = ([], [])
    for conversation, fold in zip(conversations, numbers, strict=True):
        parts[fold == 0].append(conversation)
    return parts


def sampled(
    conversations: Sequence[Conversation], fraction: float, *, seed: int, kinds: Kinds | None = None
) -> list[Conversation]:
    """A share of the conversations, in their order, every stratum by its size; at least one.

    Strata: with a picture or without, what kind of question (where all of a conversation are of one), and the quarter
    that the length of its answers is in.
    """
    count = max(1, round(fraction * len(conversations)))
    if count >= len(conversations):
        return list(conversations)
    rng = random.Random(seed)
    lengths = [sum(len(turn.answer) for turn in conversation.turns) for conversation in conversations]
    by_length = sorted(range(len(conversations)), key=lambda index: (lengths[index], index))
    quarter = {index: place * _ROUGH_LENGTHS // len(by_length) for place, index in enumerate(by_length)}
    strata: dict[tuple[bool, str, int], list[int]] = defaultdict(list)
    for index, conversation in enumerate(conversations):
        kind = "" if kinds is None else kinds.of_whole(conversation)
        strata[conversation.image is not None, kind, quarter[index]].append(index)
    shares = {key: count * len(members) / len(conversations) for key, members in strata.items()}
    takes = {key: math.floor(share) for key, share in shares.items()}
    # The largest remainders get what is left; of equal ones a random one, or small strata would always go first.
    order = sorted(strata)
    rng.shuffle(order)
    order.sort(key=lambda key: takes[key] - shares[key])
    for key in order[: count - sum(takes.values())]:
        takes[key] += 1
    chosen = {index for key in sorted(strata) for index in rng.sample(strata[key], takes[key])}
    return [conversation for index, conversation in enumerate(conversations) if index in chosen]


def check_apart(named: Sequence[tuple[str, Sequence[Conversation]]]) -> None:
    """Raises DatasetError if one conversation is in two of the parts, each given with its name."""
    seen: dict[tuple[object, ...], tuple[str, str]] = {}
    for name, conversations in named:
        for conversation in conversations:
            content = (conversation.image and conversation.image.resolve(), conversation.turns)
            other, first = seen.setdefault(content, (name, conversation.id))
            if other != name:
                raise DatasetError(
                    "what is trained on, what decides and what only reports must be different conversations",
                    values=f"{other} {first} is {name} {conversation.id}",
                    remedy=f"Take it out of the {name} file",
                )
