"""Folds: even, reproducible, and no picture in two of them."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.data.conversations import Conversation, Turn
from pruning.data.folds import MIN_FOLD_SIZE, MIN_FOLDS, NUM_FOLDS, fold_numbers

Make = Callable[..., Conversation]


@pytest.fixture
def of(tmp_path: Path) -> Make:
    """Makes a conversation of so many turns about the picture with these bytes."""
    names = itertools.count()

    def make(picture: str | None, turns: int = 1) -> Conversation:
        path = None
        if picture is not None:
            path = tmp_path / f"{next(names)}.png"
            path.write_text(picture)
        return Conversation("id", path, tuple(Turn("question", "answer") for _ in range(turns)))

    return make


def test_conversations_about_one_picture_are_in_one_fold_wherever_it_lies(of: Make) -> None:
    conversations = [of(f"{index // 3}") for index in range(48)]
    numbers = fold_numbers(conversations)
    assert numbers is not None
    assert set(numbers) == set(range(NUM_FOLDS))
    for picture in range(16):
        assert len(set(numbers[3 * picture : 3 * picture + 3])) == 1


def test_folds_have_about_equal_numbers_of_answers(of: Make) -> None:
    conversations = [of(f"{index}", turns=1 + index % 7) for index in range(64)]
    numbers = fold_numbers(conversations)
    assert numbers is not None
    answers = [0] * NUM_FOLDS
    for conversation, number in zip(conversations, numbers, strict=True):
        answers[number] += len(conversation.turns)
    assert max(answers) - min(answers) <= 1
    assert numbers == fold_numbers(conversations)


def test_text_alone_has_no_picture_to_share(of: Make) -> None:
    numbers = fold_numbers([of(None) for _ in range(16)])
    assert numbers is not None
    assert [numbers.count(fold) for fold in range(NUM_FOLDS)] == [2] * NUM_FOLDS


@pytest.mark.parametrize(("count", "folds"), [(7, None), (8, 4), (11, 5), (16, 8), (200, 8)])
def test_few_conversations_have_fewer_folds_or_none(of: Make, count: int, folds: int | None) -> None:
    numbers = fold_numbers([of(f"{index}") for index in range(count)])
    assert (None if numbers is None else max(numbers) + 1) == folds
    if numbers is not None:
        assert min(numbers.count(fold) for fold in range(max(numbers) + 1)) >= MIN_FOLD_SIZE


def test_too_few_pictures_are_no_folds_however_many_conversations(of: Make) -> None:
    assert fold_numbers([of(f"{index % (MIN_FOLDS - 1)}") for index in range(100)]) is None
    assert fold_numbers([]) is None
