"""Which conversations are trained on, and which are kept back to decide by."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
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

    A subject is a picture or, of text alone, a first question. Several answers may have been drawn to such a text: one
    of them decides, since intervals take answers for independent, and the others are left out. Of an eighth that is
    more than `MOST_HELD_OUT`, the subjects that fit into so many, or the one with the fewest conversations; the rest is
    trained on.

    Raises DatasetError if there are too few.
    """
    subjects = _by_subject(conversations)
    # Conversations about one picture ask different things, so all of them may decide.
    able = [members if conversations[members[0]].image is not None else members[:1] for members in subjects]
    indices = sorted(index for members in able for index in members)
    folds = fold_numbers([conversations[index] for index in indices])
    if folds is None:
        raise DatasetError(
            f"a selection part is kept back from {MIN_FOLDS * MIN_FOLD_SIZE} conversations or more, about {MIN_FOLDS} "
            f"pictures or {MIN_FOLDS * MIN_FOLD_SIZE} texts",
            values=f"{len(conversations)} conversations about {len(subjects)} different pictures or texts",
            remedy="Add some about others, or give conversations to decide by: --selection FILE",
        )
    first = {index for index, fold in zip(indices, folds, strict=True) if fold == 0}
    kept_back = _bounded([number for number, members in enumerate(able) if members[0] in first], able)
    deciding = {index for number in kept_back for index in able[number]}
    not_trained = {index for number in kept_back for index in subjects[number]}
    return (
        [conversation for index, conversation in enumerate(conversations) if index not in not_trained],
        [conversation for index, conversation in enumerate(conversations) if index in deciding],
    )


def _by_subject(conversations: Sequence[Conversation]) -> list[list[int]]:
    """The indices of the conversations about each picture and, of text alone, of those with the same first question."""
    subjects: dict[object, list[int]] = {}
    for picture, members in by_picture(conversations).items():
        first = conversations[members[0]]
        subject = first.turns[0].question if first.image is None else picture
        subjects.setdefault(subject, []).extend(members)
    return list(subjects.values())


def _bounded(numbers: Sequence[int], groups: Sequence[Sequence[int]]) -> Sequence[int]:
    """`numbers`, of groups, or those of them that are kept back where they are too many: from all over the file."""
    if sum(len(groups[number]) for number in numbers) <= MOST_HELD_OUT:
        return numbers
    order = list(numbers)
    random.Random(0).shuffle(order)
    chosen: list[int] = []
    count = 0
    for number in order:
        if count + len(groups[number]) <= MOST_HELD_OUT:
            chosen.append(number)
            count += len(groups[number])
    return chosen or [min(order, key=lambda number: len(groups[number]))]


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


def shared_texts(one: Sequence[Conversation], other: Sequence[Conversation]) -> int:
    """How many first questions of text alone are asked in both parts."""
    asked = [{x.turns[0].question for x in part if x.image is None} for part in (one, other)]
    return len(asked[0] & asked[1])


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
