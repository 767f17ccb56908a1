"""Calibration conversations in folds, for cross-validation: what is judged on one fold was decided without it."""

from collections.abc import Sequence
from hashlib import sha256

from pruning.data.conversations import Conversation

NUM_FOLDS = 8
"""Each fold is decided for with 7/8 of the data: nearly what the whole decides, and eight terms tell a spread."""

MIN_FOLDS = 4
"""Fewer tell no spread."""

MIN_FOLD_SIZE = 2
"""Conversations: how far off a fold of one is says more of that conversation than of the model."""


def by_picture(conversations: Sequence[Conversation]) -> dict[object, list[int]]:
    """The indices of the conversations about each picture; each one without is alone. Raises OSError if one is gone."""
    pictures: dict[object, list[int]] = {}
    for index, conversation in enumerate(conversations):
        # By content, as samples are keyed: equal on every machine, wherever the pictures lie.
        key: object = index if conversation.image is None else sha256(conversation.image.read_bytes()).digest()
        pictures.setdefault(key, []).append(index)
    return pictures


def fold_numbers(conversations: Sequence[Conversation]) -> list[int] | None:
    """The fold of each of `conversations`, from 0; None if they are too few. Raises OSError if a picture is gone.

    Conversations about one picture are in one fold: a picture that is known is not unseen. There are `NUM_FOLDS` folds
    of about equal numbers of answers, or as many as keep `MIN_FOLD_SIZE` conversations each, at least `MIN_FOLDS`.
    """
    pictures = by_picture(conversations)
    answers = {key: sum(len(conversations[i].turns) for i in members) for key, members in pictures.items()}
    # The most answers first, each picture to the fold that has least yet: the usual rule for even sums.
    order = sorted(pictures, key=lambda key: (-answers[key], pictures[key][0]))
    for num_folds in range(min(NUM_FOLDS, len(conversations) // MIN_FOLD_SIZE), MIN_FOLDS - 1, -1):
        numbers, filled = [0] * len(conversations), [0] * num_folds
        for picture in order:
            emptiest = filled.index(min(filled))
            filled[emptiest] += answers[picture]
            for index in pictures[picture]:
                numbers[index] = emptiest
        if min(numbers.count(fold) for fold in range(num_folds)) >= MIN_FOLD_SIZE:
            return numbers
    return None
