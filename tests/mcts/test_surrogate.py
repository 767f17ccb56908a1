"""The additive table: what it starts from, what it learns, what it ignores."""

import numpy as np
import pytest

from mcts.surrogate import ScoredConfiguration, fit_surrogate

SENSITIVITY = np.array([[3.0, 1.0, 0.0], [6.0, 1.0, 0.0]])


def test_starts_from_the_scaled_sensitivities() -> None:
    # S at (2, 2) is 1 + 1; the table is log(1 + s / 2), nothing else being known.
    table = fit_surrogate(SENSITIVITY, [], target=0, incumbent=(2, 2)).table
    assert table == pytest.approx(np.log([[2.5, 1.5, 1.0], [4.0, 1.5, 1.0]]))


def test_a_dense_incumbent_leaves_the_table_flat() -> None:
    assert fit_surrogate(SENSITIVITY, [], target=0, incumbent=(3, 3)).table == pytest.approx(np.zeros((2, 3)))


def additive_samples(truth: np.ndarray, target: int = 0, offset: float = 0.0) -> list[ScoredConfiguration]:
    L, K = truth.shape
    rng = np.random.default_rng(0)
    drawn = {tuple(int(k) for k in rng.integers(1, K + 1, L)) for _ in range(200)}
    return [
        ScoredConfiguration(target, c, offset + float(sum(truth[i, k - 1] for i, k in enumerate(c))))
        for c in sorted(drawn)
    ]


TRUTH = np.array([[0.5, 0.3, 0.0], [0.1, 0.1, 0.0], [0.2, 0.6, 0.4]])


def test_learns_an_additive_truth() -> None:
    # The scan says nothing; 27 samples say everything but each layer's constant.
    table = fit_surrogate(np.zeros((3, 3)), additive_samples(TRUTH), target=0, incumbent=(3, 3, 3)).table
    contrasts = table - table.mean(axis=1, keepdims=True)
    assert contrasts == pytest.approx(TRUTH - TRUTH.mean(axis=1, keepdims=True), abs=0.1)
    assert table.argmin(axis=1).tolist() == [2, 2, 0]


def test_the_scale_of_kl_drops_out() -> None:
    near = fit_surrogate(SENSITIVITY, additive_samples(TRUTH[:2]), target=0, incumbent=(2, 2)).table
    far = fit_surrogate(1e6 * SENSITIVITY, additive_samples(TRUTH[:2], offset=-30.0), target=0, incumbent=(2, 2)).table
    assert far == pytest.approx(near, abs=1e-9)


def test_another_target_informs_whatever_its_level() -> None:
    other = additive_samples(TRUTH, target=1, offset=5.0)
    table = fit_surrogate(np.zeros((3, 3)), other, target=0, incumbent=(3, 3, 3)).table
    assert 0.25 < table[0, 0] - table[0, 2] < 0.5  # in the right direction, believed less
    assert table.argmin(axis=1).tolist() == [2, 2, 0]


def test_posterior_samples_spread_where_nothing_was_seen() -> None:
    samples = [s for s in additive_samples(TRUTH) if s.configuration[0] > 1]
    surrogate = fit_surrogate(np.zeros((3, 3)), samples, target=0, incumbent=(3, 3, 3))
    rng = np.random.default_rng(0)
    drawn = np.stack([surrogate.sample_table(rng) for _ in range(300)])
    unseen = (drawn[:, 0, 0] - drawn[:, 0, 1]).std()
    seen = (drawn[:, 0, 2] - drawn[:, 0, 1]).std()
    assert unseen > 2.0 * seen
    assert drawn.mean(axis=0) == pytest.approx(surrogate.table, abs=0.15)
