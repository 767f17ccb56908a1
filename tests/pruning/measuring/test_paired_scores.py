"""Two models on the same questions, by hand."""

import pytest

from pruning.errors import InputError
from pruning.measuring.paired_scores import compare_scores, mcnemar


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(3, 3) == 1.0  # twice a tail that holds the middle


def test_the_same_questions_are_compared() -> None:
    dense = [1.0] * 8 + [0.0] * 2
    pruned = [1.0] * 5 + [0.0] * 3 + [1.0, 0.0]
    found = compare_scores(dense, pruned)
    assert (found.questions, found.dense, found.pruned) == (10, 0.8, 0.6)
    assert found.percent_of_dense == pytest.approx(75)
    assert (found.only_dense, found.only_pruned) == (3, 1)
    assert found.p_value == pytest.approx(2 * (1 + 4) / 16)
    assert found.interval is not None
    assert found.interval[0] < 75 < found.interval[1]
    assert compare_scores(dense, pruned) == found


def test_a_model_as_good_as_itself_has_no_doubt() -> None:
    assert compare_scores([1.0, 0.0] * 20, [1.0, 0.0] * 20).interval == (100.0, 100.0)


def test_scores_that_are_not_right_or_wrong_have_no_mcnemar() -> None:
    found = compare_scores([0.5, 1.5], [0.25, 1.25])
    assert found.percent_of_dense == pytest.approx(75)
    assert found.p_value is None


def test_of_a_dense_model_that_answers_nothing_there_is_no_percentage() -> None:
    found = compare_scores([0.0, 0.0], [0.0, 1.0])
    assert (found.percent_of_dense, found.interval) == (None, None)


@pytest.mark.parametrize(("dense", "pruned"), [([], []), ([1.0], [1.0, 0.0])])
def test_other_questions_are_refused(dense: list[float], pruned: list[float]) -> None:
    with pytest.raises(InputError, match="the same questions"):
        compare_scores(dense, pruned)
