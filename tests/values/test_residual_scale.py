"""How large held-out residuals are for what was predicted of them, by retention."""

import numpy as np
import pytest

from values.residual_scale import ResidualScale


def test_large_residuals_count_where_they_are() -> None:
    retention = np.repeat([0.3, 0.5, 0.7], 100)
    scores = np.where(retention == 0.5, 4.0, 1.0) * np.tile([1.0, -1.0], 150)
    errors = ResidualScale.measure(retention, scores, np.ones(300))
    assert errors.at(0.5) == pytest.approx(4.0, rel=0.05)
    assert errors.at(0.3) == pytest.approx(1.0, rel=0.1)
    assert errors.at(0.7) == pytest.approx(1.0, rel=0.1)
    assert errors.at(0.4) == pytest.approx(2.0, rel=0.05)  # far from all: their mean
    assert ResidualScale.from_dict(errors.to_dict()) == errors


def test_few_samples_say_little() -> None:
    retention = np.array([0.3] * 200 + [0.6])
    errors = ResidualScale.measure(retention, np.array([1.0] * 200 + [10.0]), np.ones(201))
    assert 1.5 < errors.at(0.6) < 4.0


def test_samples_near_the_frontier_count_most() -> None:
    scores, weights = np.array([1.0, 5.0] * 50), np.array([1.0, 0.1] * 50)
    assert ResidualScale.measure(np.full(100, 0.5), scores, weights).at(0.5) == pytest.approx(15.0 / 11.0, rel=1e-6)


def test_nothing_known_changes_nothing() -> None:
    assert ResidualScale().at(0.4) == 1.0
