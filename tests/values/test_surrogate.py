"""The surrogate: what it starts from, what it learns, what it ignores, and how sure it is."""

import itertools
import math

import numpy as np
import pytest

from values.surrogate import (
    MAX_SAMPLES,
    ROUGHNESSES,
    SLOPE_MEAN,
    Kernel,
    Prediction,
    ScoredChoice,
    expected_improvement,
    fit_surrogate,
)

SENSITIVITY = np.array([[3.0, 1.0, 0.0], [6.0, 1.0, 0.0]])
EVERYTHING = np.array(list(itertools.product(range(3), repeat=3)))
TRUTH = np.array([[0.5, 0.3, 0.0], [0.1, 0.1, 0.0], [0.2, 0.6, 0.4]])


def truth_of(choices: np.ndarray) -> np.ndarray:
    summed: np.ndarray = TRUTH[np.arange(3), choices].sum(axis=1)
    return summed


def samples_of(values: np.ndarray, target: int = 0, offset: float = 0.0) -> list[ScoredChoice]:
    return [ScoredChoice(target, tuple(c), offset + float(v)) for c, v in zip(EVERYTHING.tolist(), values, strict=True)]


def test_starts_from_the_additive_model() -> None:
    surrogate = fit_surrogate(Kernel(SENSITIVITY, 0.0), [], target=0)
    means = surrogate.means(np.array([[0, 1], [1, 0], [1, 1]]))
    assert means == pytest.approx(SLOPE_MEAN * np.log([3.0 + 1.0, 1.0 + 6.0, 1.0 + 1.0]), abs=1e-4)
    table = surrogate.table((1, 1))
    assert table[0] == pytest.approx(SLOPE_MEAN * np.log(np.array([4.0, 2.0, 1.0]) / 2.0), abs=1e-4)
    assert table[:, 1].tolist() == [0.0, 0.0]


def test_learns_an_additive_truth() -> None:
    # The scan says nothing; 27 samples say everything.
    surrogate = fit_surrogate(Kernel(np.zeros((3, 3)), 0.0), samples_of(truth_of(EVERYTHING)), target=0)
    table = surrogate.table((2, 2, 0))
    assert table == pytest.approx(TRUTH - TRUTH[[0, 1, 2], [2, 2, 0]][:, None], abs=0.1)
    assert table.argmin(axis=1).tolist() == [2, 2, 0]


def test_learns_what_pairs_of_layers_do_together() -> None:
    together = 0.4 * ((EVERYTHING[:, 0] == 0) & (EVERYTHING[:, 1] == 0))
    values = truth_of(EVERYTHING) + together
    seen = [s for s in samples_of(values) if s.choice != (0, 0, 0)]
    surrogate = fit_surrogate(Kernel(np.zeros((3, 3)), 0.0), seen, target=0)
    assert surrogate.means(np.array([[0, 0, 0]]))[0] == pytest.approx(values[0] - values.min(), abs=0.15)
    # The table is of the incumbent's neighbourhood: the pair shows only where its other half is.
    assert surrogate.table((0, 1, 0))[1, 0] > surrogate.table((2, 1, 0))[1, 0] + 0.25


def test_is_sure_of_the_best_it_saw_and_unsure_elsewhere() -> None:
    seen = samples_of(truth_of(EVERYTHING))[-9:]  # layer 0 at its last level only
    surrogate = fit_surrogate(Kernel(np.zeros((3, 3)), 0.0), seen, target=0)
    predicted = surrogate.predict(np.array([[2, 2, 0], [0, 2, 0]]))
    assert predicted.mean[0] == pytest.approx(0.0, abs=0.05)
    assert predicted.sd[1] > 3 * predicted.sd[0]
    assert predicted.mean == pytest.approx(surrogate.means(np.array([[2, 2, 0], [0, 2, 0]])))


def test_a_smooth_truth_makes_it_surer() -> None:
    rng = np.random.default_rng(0)
    kernel = Kernel(np.zeros((3, 3)), 0.0)
    smooth = fit_surrogate(kernel, samples_of(0.1 * truth_of(EVERYTHING)), target=0)
    rough = fit_surrogate(kernel, samples_of(rng.normal(0.0, 0.5, 27)), target=0)
    assert rough.predict(EVERYTHING).sd.mean() > 3 * smooth.predict(EVERYTHING).sd.mean()


def test_a_rough_view_doubts_levels_that_were_not_seen() -> None:
    seen = [s for s in samples_of(truth_of(EVERYTHING)) if s.choice[0] != 1]
    smooth, rough = (
        fit_surrogate(Kernel(np.zeros((3, 3)), roughness), seen, target=0).predict(np.array([[1, 2, 0], [2, 2, 0]]))
        for roughness in ROUGHNESSES
    )
    assert rough.sd[0] > 1.3 * smooth.sd[0]
    assert rough.mean[1] == pytest.approx(smooth.mean[1], abs=0.05)


def test_the_scale_of_kl_drops_out() -> None:
    values = truth_of(EVERYTHING)
    sensitivity = np.array([[3.0, 1.0, 0.0], [6.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    near = fit_surrogate(Kernel(sensitivity, 0.0), samples_of(values), target=0).predict(EVERYTHING)
    far = fit_surrogate(Kernel(1e6 * sensitivity, 0.0), samples_of(values, offset=-30.0), target=0).predict(EVERYTHING)
    assert far.mean == pytest.approx(near.mean, abs=1e-9)
    assert far.sd == pytest.approx(near.sd, abs=1e-9)


def test_another_target_informs_whatever_its_level() -> None:
    other = samples_of(truth_of(EVERYTHING), target=1, offset=5.0)
    table = fit_surrogate(Kernel(np.zeros((3, 3)), 0.0), other, target=0).table((2, 2, 0))
    assert 0.25 < table[0, 0] - table[0, 2] < 0.55
    assert table.argmin(axis=1).tolist() == [2, 2, 0]


def test_far_samples_give_way_to_near_ones() -> None:
    levels = np.array(list(itertools.product(range(8), repeat=3)))[: MAX_SAMPLES + 100]
    kernel = Kernel(np.zeros((3, 8)), 0.0)
    values = np.linspace(0.0, 3.0, len(levels))
    samples = [ScoredChoice(0, tuple(c), float(v)) for c, v in zip(levels.tolist(), values, strict=True)]
    best = fit_surrogate(kernel, samples[:MAX_SAMPLES], target=0).means(levels)
    assert fit_surrogate(kernel, samples, target=0).means(levels) == pytest.approx(best)


def test_expected_improvement_by_hand() -> None:
    promise = expected_improvement(Prediction(np.array([0.0, -1.0, 2.0]), np.array([1.0, 1e-9, 1e-3])))
    assert promise == pytest.approx([1.0 / math.sqrt(2.0 * math.pi), 1.0, 0.0])
