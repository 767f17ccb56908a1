"""What is better by more than chance, worked by hand."""

from pruning.measuring.metrics import FoldMetrics
from values.sure_improvement import sure_to_be_better


def folds(*kl: float, tokens: int = 10) -> tuple[FoldMetrics, ...]:
    return tuple(FoldMetrics(x, 0.0, 0.0, tokens, 1) for x in kl)


def test_better_only_by_more_than_chance() -> None:
    """Three folds of ten tokens. Less by .1 in each is sure; less by .1 in the mean, from .7 less to .4 more, is not,
    with an error of .32; nor is what is equal."""
    other = folds(1.0, 2.0, 3.0)
    assert sure_to_be_better(folds(0.9, 1.9, 2.91), other)
    assert not sure_to_be_better(folds(0.3, 2.0, 3.4), other)
    assert not sure_to_be_better(other, other)
    assert not sure_to_be_better(folds(1.1, 2.1, 3.1), other)


def test_folds_count_by_their_tokens() -> None:
    """.2 less on ten tokens and .1 more on a hundred is more, in all."""
    few, many = folds(1.0)[0], folds(1.0, tokens=100)[0]
    assert not sure_to_be_better((few._replace(kl=0.8), many._replace(kl=1.1)), (few, many))
    assert sure_to_be_better((few._replace(kl=0.8), few._replace(kl=0.9)), (few, few))


def test_nothing_is_sure_without_equal_folds() -> None:
    assert not sure_to_be_better((), folds(1.0, 1.0))
    assert not sure_to_be_better(folds(0.1), folds(1.0))
    assert not sure_to_be_better(folds(0.1, 0.1, tokens=9), folds(1.0, 1.0))
    assert not sure_to_be_better(folds(0.1, 0.1), folds(1.0, 1.0, 1.0))
