"""What a search would have chosen without each fold, and the document of what it is worth there."""

import json

import numpy as np

from pruning.measuring.metrics import Metrics
from pruning.planning.space import Choice
from values.cross_validation import NUM_CHOSEN, CrossValidation, FoldScore, chosen_without_each


def scored(parts: tuple[float, ...] | None) -> Metrics:
    return Metrics(sum(parts or (1.0,)), 1.0, 0.5, 100, 10, 0.5, parts)


def test_a_fold_takes_no_part_in_what_is_chosen_without_it() -> None:
    lucky: dict[Choice, Metrics] = {
        (0,): scored((0.0, 0.5, 0.5, 0.5)),
        (1,): scored((0.9, 0.3, 0.3, 0.3)),
        (2,): scored((0.5, 0.4, 0.4, 0.4)),
    }
    chosen = chosen_without_each(lucky)
    assert chosen[0] == ((1,), (2,))  # though the first is the best on all of them together
    assert chosen[1][0] == (0,)
    assert all(len(choices) == NUM_CHOSEN for choices in chosen)


def test_without_folds_nothing_is_chosen() -> None:
    assert chosen_without_each({(0,): scored(None)}) == ()
    assert chosen_without_each({(0,): scored((0.1, 0.2)), (1,): scored(None)}) == ()
    assert chosen_without_each({}) == ()


def test_fewer_scored_than_are_judged_are_all_of_them() -> None:
    assert chosen_without_each({(3,): scored((0.1, 0.2))}) == (((3,),), ((3,),))


def test_a_document_is_read_back() -> None:
    folds = tuple(FoldScore(10 + fold, 4, 0.2, 0.1, 0.8, 0.9, 0.95) for fold in range(4))
    found = CrossValidation(0.05, folds)
    assert CrossValidation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    np.testing.assert_array_equal(found.column("num_tokens"), [10, 11, 12, 13])
