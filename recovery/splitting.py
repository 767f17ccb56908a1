"""Which conversations are trained on, and which are kept back to decide by."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pruning.data.conversations import Conversation
from pruning.data.folds import MIN_FOLD_SIZE, MIN_FOLDS, by_picture, fold_numbers
from pruning.errors import DatasetError
from recovery.kinds import Kinds

_ROUGH_LENGTHS = 4
"""Strata by the length of the answers: quarters."""


MOST_HELD_OUT: Final = 512
"""Conversations: they are scored a dozen times, and with so many answers an interval is narrow already."""


def held_out(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """What is trained on, and an eighth (of few conversations: a quarter) to decide by; no subject is in both.

    A subject is a picture or, of text alone, the questions, to which there may be several answers. Of an eighth that is
    more than `MOST_HELD_OUT`, the subjects that fit into so many, or the one with the fewest conversations. The rest is
    trained on.

    Raises DatasetError if there are too few.
    """
    numbers = _fold_numbers(conversations)
    if numbers is None:
        subjects = f"about {len(_by_subject(conversations))} different pictures or texts"
        raise DatasetError(
            f"a selection part is kept back from {MIN_FOLDS * MIN_FOLD_SIZE} conversations or more",
            values=f"{len(conversations)} conversations {subjects}",
            remedy="Give conversations to decide by: --selection FILE",
        )
    deciding = _bounded(conversations, [index for index, fold in enumerate(numbers) if fold == 0])
    parts: tuple[list[Conversation], list[Conversation]] = ([], [])
    for index, conversation in enumerate(conversations):
        parts[index in deciding].append(conversation)
    return parts


def _by_subject(conversations: Sequence[Conversation]) -> list[list[int]]:
    """The indices of the conversations about each picture and, of text alone, of those that ask the same."""
    subjects: dict[object, list[int]] = {}
    for picture, members in by_picture(conversations).items():
        first = conversations[members[0]]
        subject = tuple(turn.question for turn in first.turns) if first.image is None else picture
        subjects.setdefault(subject, []).extend(members)
    return list(subjects.values())


def _fold_numbers(conversations: Sequence[Conversation]) -> list[int] | None:
    """As `fold_numbers`, and all answers to the same text are in one fold."""
    groups: list[list[int]] = []
    for members in _by_subject(conversations):
        has_picture = conversations[members[0]].image is not None
        groups += [[index] for index in members] if has_picture else [members]
    one_each = [
        replace(conversations[group[0]], turns=tuple(turn for index in group for turn in conversations[index].turns))
        for group in groups
    ]
    folds = fold_numbers(one_each)
    if folds is None:
        return None
    numbers = [0] * len(conversations)
    for group, fold in zip(groups, folds, strict=True):
        for index in group:
            numbers[index] = fold
    return numbers


def _bounded(conversations: Sequence[Conversation], indices: Sequence[int]) -> set[int]:
    """`indices`, or those of them that are kept back where they are too many: of subjects from all over the file."""
    if len(indices) <= MOST_HELD_OUT:
        return set(indices)
    groups = _by_subject([conversations[index] for index in indices])
    random.Random(0).shuffle(groups)
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) <= MOST_HELD_OUT:
            chosen.update(indices[place] for place in group)
    return chosen or {indices[place] for place in min(groups, key=len)}


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
