"""The KL that is typical of a score: what values learn where a few tokens make most of the measured one."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pruning.measuring.metrics import FoldMetrics, Metrics
from values.kl_floor import log_kl
from values.typical_kl import TypicalKl


def metrics(kl: float, score: float | None) -> Metrics:
    """Of two folds of unlike size."""
    root = None if score is None else math.sqrt(score)
    folds = tuple(FoldMetrics(kl, 0.5, 0.9, tokens, 4, root) for tokens in (10, 30))
    return Metrics(kl, 1.0, 0.5, 40, 8, 0.9, folds)


def test_a_score_is_the_squared_mean_root() -> None:
    uneven = replace(
        metrics(0.5, 0.04), folds=(FoldMetrics(0.5, 0.5, 0.9, 10, 4, 0.5), FoldMetrics(0.5, 0.5, 0.9, 30, 4, 0.1))
    )
    assert uneven.score == pytest.approx(((10 * 0.5 + 30 * 0.1) / 40) ** 2)
    assert metrics(0.5, None).score == replace(uneven, folds=None).score == 0.5
    first = FoldMetrics(0.5, 0.5, 0.9, 10, 4, 0.5)
    assert replace(uneven, folds=(first, first._replace(root_kl=None))).score == 0.5


def test_noise_of_kl_is_taken_out_and_its_level_is_kept() -> None:
    rng = np.random.default_rng(0)
    scores = np.exp(rng.uniform(-9, 0, 800))
    noise = rng.normal(0.0, 0.6, 800)
    samples = [metrics(float(12.0 * s * np.exp(e)), float(s)) for s, e in zip(scores, noise, strict=True)]
    typical = TypicalKl.of(samples)
    found = np.array([typical(sample) for sample in samples])
    expected = np.log(12.0 * scores)
    inner = (scores > np.exp(-8)) & (scores < np.exp(-1))
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.15)  # of noise of .6
    order = np.argsort(scores)
    assert (np.diff(found[order]) > 0).all()


def test_without_scores_a_sample_is_its_own() -> None:
    old = [metrics(0.1, None), metrics(0.4, None)]
    typical = TypicalKl.of(old)
    assert [typical(sample) for sample in old] == [log_kl(0.1), log_kl(0.4)]
    assert typical.at(0.4) == log_kl(0.4)
    mixed = TypicalKl.of([*old, metrics(0.2, 0.001)])
    assert mixed(metrics(0.2, 0.001)) == log_kl(0.2)
    assert TypicalKl.of([])(old[0]) == log_kl(0.1)
