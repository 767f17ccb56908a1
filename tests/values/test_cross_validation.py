"""What a search would have chosen without each fold, and the document of what that is worth there."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pruning.measuring.metrics import FoldMetrics, Metrics
from values.cross_validation import CrossValidation, judged_without_each


def scored(*kl: float, tokens: tuple[int, ...] = (10, 10, 10, 10)) -> Metrics:
    """A score with folds of these KLs; accuracy and agreement follow from them."""
    folds = tuple(FoldMetrics(x, 1.0 - x, 1.0 - x / 2.0, n, n // 5) for x, n in zip(kl, tokens, strict=False))
    return Metrics(float(np.mean(kl or (1.0,))), 1.0, 0.5, 100, 10, 0.5, folds or None)


def test_a_fold_takes_no_part_in_what_is_judged_on_it() -> None:
    lucky = [
        scored(0.0, 0.5, 0.5, 0.5),  # the best on all of them together, by its luck on the first
        scored(0.9, 0.3, 0.3, 0.35),
        scored(0.5, 0.4, 0.4, 0.45),
    ]
    judged = judged_without_each(lucky)
    assert [fold.kl for fold in judged] == [0.9, 0.5, 0.5, 0.5]
    assert judged[0].accuracy == pytest.approx(0.1)
    assert judged[0].agreement == pytest.approx(0.55)


def test_folds_count_by_their_tokens() -> None:
    tokens = (10, 1000, 10, 10)
    found = judged_without_each(
        [
            scored(0.5, 0.1, 0.9, 0.9, tokens=tokens),
            scored(0.6, 0.1, 0.9, 0.9, tokens=tokens),
            scored(0.1, 0.2, 0.1, 0.1, tokens=tokens),
        ]
    )
    assert found[0].kl == 0.5  # the third, better on three folds, is worse on most of the tokens
    assert [fold.num_tokens for fold in found] == list(tokens)


def test_scores_without_folds_say_nothing() -> None:
    assert judged_without_each([scored()]) == ()
    assert judged_without_each([scored(0.1, 0.2), scored()]) == ()
    assert judged_without_each([]) == ()


def test_scores_by_other_folds_are_not_mixed() -> None:
    """As of another version's, or of pictures that lie elsewhere."""
    assert judged_without_each([scored(0.1, 0.2), scored(0.1, 0.2, tokens=(9, 11))]) == ()
    assert judged_without_each([scored(0.1, 0.2), scored(0.1, 0.2, 0.3)]) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"folds": []},
        {"dense": [[0.0, 1.0, 1.0, 10, 4]]},
        {"kl": float("nan")},
        {"kl": -0.1},
        {"score": -0.1},
        {"folds": [[0.2, 0.8, 0.9, 0, 4]] * 4},
        {"folds": [[0.2, 0.8, float("inf"), 10, 4]] * 4},
        {"folds": [[0.2, 0.8]] * 4},
    ],
)
def test_an_impossible_document_is_refused(change: dict[str, object]) -> None:
    folds = [[0.2, 0.8, 0.9, 10, 4]] * 4
    document: dict[str, object] = {"kl": 0.05, "folds": folds, "dense": folds}
    read = CrossValidation.from_dict(document)
    assert (read.kl, read.score) == (0.05, 0.05)  # as it was stored when KL was the score
    with pytest.raises((TypeError, ValueError)):
        CrossValidation.from_dict(document | change)


def test_a_document_is_read_back() -> None:
    folds = tuple(FoldMetrics(0.2, 0.8, 0.9, 10 + fold, 4) for fold in range(4))
    found = CrossValidation(0.05, 0.02, folds, folds[::-1])
    assert CrossValidation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    np.testing.assert_array_equal(found.column("num_tokens"), [10, 11, 12, 13])
    np.testing.assert_array_equal(found.column("num_tokens", dense=True), [13, 12, 11, 10])


def test_roots_choose_where_all_folds_have_them() -> None:
    """A few bad tokens make a KL, hardly a root KL; what is judged stays a KL."""
    steady = scored(0.3, 0.3, 0.3, 0.3)
    peaked = scored(0.4, 0.4, 0.4, 0.4)
    assert [fold.kl for fold in judged_without_each([steady, peaked])] == [0.3] * 4

    def rooted(metrics: Metrics, root_kl: float) -> Metrics:
        assert metrics.folds is not None
        return replace(metrics, folds=tuple(fold._replace(root_kl=root_kl) for fold in metrics.folds))

    with_roots = [rooted(steady, 0.5), rooted(peaked, 0.1)]
    assert [fold.kl for fold in judged_without_each(with_roots)] == [0.4] * 4
    assert [fold.kl for fold in judged_without_each([with_roots[0], peaked])] == [0.3] * 4
    found = CrossValidation.of(with_roots, with_roots[0])
    assert found is not None
    assert found.kl == peaked.kl
    assert found.score == pytest.approx(0.01)
    assert CrossValidation.of(with_roots, scored()) is None
