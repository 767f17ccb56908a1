"""The values at hand-worked points, and the kriging against its textbook form and against refitting."""

from dataclasses import replace

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.space import Space
from storage.records import Sample
from tests.values.landscape import anatomy_of, sample, samples_of, true_kl
from values.basis import Basis, Regression
from values.dataset import TrainingData, training_data
from values.encoding import Encoding, encode
from values.held_out import HeldOutResiduals
from values.kl_floor import KL_FLOOR_NATS
from values.value_training import ValueFit, choose_anchors, drift_of, fit_values
from values.values import Values, distances, weights_of


@pytest.fixture(scope="module")
def encoding(anatomy: ModelAnatomy, space: Space, samples: list[Sample]) -> Encoding:
    return encode(anatomy, space, samples)


@pytest.fixture(scope="module")
def data(space: Space, encoding: Encoding, samples: list[Sample]) -> TrainingData:
    return training_data(encoding, samples)


@pytest.fixture(scope="module")
def fit(encoding: Encoding, data: TrainingData) -> ValueFit:
    return fit_values(encoding, data)


def test_the_dense_model_loses_nothing(fit: ValueFit) -> None:
    mean, deviation = fit.values.judge(np.ones((1, 6)))
    assert mean[0] == pytest.approx(np.log(KL_FLOOR_NATS))
    assert deviation[0] == 0.0


def test_own_kl_is_the_scan_at_the_levels_and_between_them(encoding: Encoding) -> None:
    curve = encoding.log_sensitivity[0]
    x = np.ones((5, 6))
    x[:, 0] = [0.25, 0.5, 0.375, 0.875, 0.125]
    own = Basis(encoding).own_kl(x)
    middle, below = (curve[0] + curve[1]) / 2, curve[0] + (curve[0] - curve[1]) / 2
    expected = [np.exp(curve[0]), np.exp(curve[1]), np.exp(middle), np.exp(curve[2]) / 2, np.exp(below)]
    np.testing.assert_allclose(own[:, 0], expected)
    assert (own[:, 1:] == 0.0).all()


def test_places_run_faster_where_sensitivity_changes_much(encoding: Encoding) -> None:
    basis = Basis(encoding)
    steps = np.diff(basis.places(basis.knots.T), axis=0)  # [K - 1, L]
    assert (steps > 0).all()
    logs = encoding.log_sensitivity
    change = np.abs(np.diff(logs, axis=1)) / (logs.max() - logs.min())
    np.testing.assert_allclose(steps[:2].T, change + 0.5 * 0.25, atol=0.05)
    halfway = basis.places((basis.knots.T[:1] + basis.knots.T[1:2]) / 2)
    np.testing.assert_allclose(halfway, (basis.places(basis.knots.T[:1]) + basis.places(basis.knots.T[1:2])) / 2)


def covariance_of(values: Values, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[A, B] in units of s^2 of what is modelled at kept fractions [A, L] and [B, L], process and regression."""
    kernel, basis = values.kernel, values.basis
    apart = distances(basis.places(x), basis.places(y)).astype(np.float64)
    terms = basis.terms(x, basis.own_kl(x)) @ basis.terms(y, basis.own_kl(y)).T
    return (np.exp(-apart / kernel.length) + kernel.slack * terms) * np.outer(basis.fade(x), basis.fade(y))


def noise_of(fit: ValueFit, data: TrainingData) -> np.ndarray:
    """[N] variances in units of s^2 of the samples."""
    return fit.values.kernel.noise**2 / weights_of(data.gap)


@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_the_regression_is_its_terms_times_the_readout(encoding: Encoding, num_layers: int) -> None:
    """Every single term, and all of them together."""
    basis, rng = Basis(encoding), np.random.default_rng(0)
    basis.pairs = np.triu_indices(num_layers, k=1)
    x, own = rng.uniform(0.2, 1.0, (7, num_layers)), rng.uniform(0.0, 0.5, (7, num_layers))
    terms = basis.terms(x, own)
    for readout in [*np.eye(terms.shape[1]), rng.normal(size=terms.shape[1])]:
        np.testing.assert_allclose(Regression(readout, num_layers)(x, own), terms @ readout, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_changes_of_one_layer_are_as_if_each_was_looked_at_by_itself(encoding: Encoding, num_layers: int) -> None:
    basis, rng = Basis(encoding), np.random.default_rng(0)
    basis.pairs = np.triu_indices(num_layers, k=1)
    x, own, other, own_other = rng.uniform(0.0, 1.0, (4, 5, num_layers))
    own[0] = own_other[0, 0] = 0.0
    regression = Regression(rng.normal(size=(basis.terms(x, own).shape[1],)), num_layers)
    found = regression.replacing(x, own, other, own_other)
    assert found.shape == (5, num_layers)
    for layer in range(num_layers):
        changed = np.arange(num_layers) == layer
        expected = regression(np.where(changed, other, x), np.where(changed, own_other, own))
        np.testing.assert_allclose(found[:, layer], expected, rtol=1e-9, atol=1e-11)


def test_distances_add_up_over_layers() -> None:
    a, b = np.array([[0.0, 1.0]], dtype=np.float32), np.array([[0.5, 3.0], [0.0, 1.0]], dtype=np.float32)
    assert distances(a, b).tolist() == [[2.5, 0.0]]


def test_what_was_measured_is_repeated_and_what_was_not_is_doubted(fit: ValueFit, data: TrainingData) -> None:
    near = weights_of(data.gap) > 0.9
    known, deviation = fit.values.judge(data.fractions[near])
    assert np.abs(known - data.log_kl[near]).mean() < 0.03
    elsewhere = np.random.default_rng(0).uniform(0.3, 1.0, (20, 6))
    assert fit.values.judge(elsewhere)[1].min() > np.median(deviation[data.searched[near]])


def test_the_mean_is_that_of_universal_kriging(fit: ValueFit, data: TrainingData) -> None:
    """Process and regression as one Gaussian process: its covariance written out and solved."""
    values, basis, x = fit.values, fit.values.basis, data.fractions
    noisy = covariance_of(values, x, x) + np.diag(noise_of(fit, data))
    new = np.random.default_rng(1).uniform(0.3, 0.9, (5, 6))
    expected = basis.base(basis.own_kl(new)) + covariance_of(values, new, x) @ np.linalg.solve(
        noisy, data.log_kl - basis.base(basis.own_kl(x))
    )
    np.testing.assert_allclose(values(new), expected, atol=2e-3)


def test_leave_one_out_errors_are_those_of_fits_without_the_sample(
    encoding: Encoding, data: TrainingData, fit: ValueFit
) -> None:
    """With the process's constants held fixed, which the closed form takes for granted."""
    basis = fit.values.basis
    covariance, noise = covariance_of(fit.values, data.fractions, data.fractions), noise_of(fit, data)
    target = data.log_kl - basis.base(basis.own_kl(data.fractions))
    for n in (3, 40, 90):
        others = np.arange(len(target)) != n
        noisy = covariance[np.ix_(others, others)] + np.diag(noise[others])
        expected = target[n] - covariance[n, others] @ np.linalg.solve(noisy, target[others])
        assert fit.alone.errors[n] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_errors_without_a_group_are_those_of_fits_without_it(
    encoding: Encoding, data: TrainingData, fit: ValueFit
) -> None:
    basis = fit.values.basis
    covariance, noise = covariance_of(fit.values, data.fractions, data.fractions), noise_of(fit, data)
    target = data.log_kl - basis.base(basis.own_kl(data.fractions))
    assert (fit.groups[~data.searched] == -1).all()
    assert fit.groups.max() >= 2
    for group in range(int(fit.groups.max()) + 1):
        here = fit.groups == group
        assert np.ptp(data.retention[here]) <= 0.01
        noisy = covariance[np.ix_(~here, ~here)] + np.diag(noise[~here])
        expected = target[here] - covariance[np.ix_(here, ~here)] @ np.linalg.solve(noisy, target[~here])
        np.testing.assert_allclose(fit.grouped.errors[here], expected, rtol=1e-3, atol=1e-5)
    single = fit.groups == -1
    np.testing.assert_array_equal(fit.grouped.errors[single], fit.alone.errors[single])


def test_what_is_known_of_other_groups_only_is_doubted_more(fit: ValueFit) -> None:
    grouped = np.bincount(fit.groups[fit.groups >= 0]) > 1
    several = np.isin(fit.groups, np.flatnonzero(grouped))
    assert several.any()
    assert fit.grouped.deviations[several].mean() > fit.alone.deviations[several].mean()


def test_scores_are_of_unit_size(fit: ValueFit, data: TrainingData) -> None:
    """Errors are about as large as was expected of them."""
    searched = data.searched[fit.anchors]
    assert 0.3 < np.abs(fit.alone.errors[searched] / fit.alone.deviations[searched]).mean() < 2.0


def test_the_values_beat_adding_up(fit: ValueFit, anatomy: ModelAnatomy) -> None:
    widths = [[16, 32, 64, 48, 48, 64], [48, 48, 16, 64, 32, 16], [32, 16, 48, 48, 64, 32], [64, 16, 16, 48, 48, 64]]
    truth = np.log([true_kl(anatomy, w) for w in widths])
    x = np.array(widths) / 64
    additive = fit.values.basis.base(fit.values.basis.own_kl(x))
    assert np.abs(fit.values(x) - truth).mean() < 0.5 * np.abs(additive - truth).mean()


def test_too_many_samples_keep_the_frontier_of_every_retention(space: Space, encoding: Encoding) -> None:
    anatomy = anatomy_of([64] * 6)
    many = samples_of(anatomy, space, targets=(0.3, 0.5), evaluations=60)
    data = training_data(encoding, many)
    kept = choose_anchors(data, 40)
    assert len(kept) == len(set(kept.tolist())) == 40
    searched = kept[data.searched[kept]]
    assert np.median(data.gap[searched]) < 0.5 * np.median(data.gap[data.searched])
    for retention in np.unique(data.retention):
        assert data.log_kl[data.retention == retention].min() in data.log_kl[kept]
    assert np.array_equal(choose_anchors(data, 10_000), np.arange(data.num_samples))


def test_far_from_what_was_measured_doubt_grows_with_the_distance(fit: ValueFit, data: TrainingData) -> None:
    """By what is unexplained of samples that are left out together, per unit of distance from the others."""
    residuals = HeldOutResiduals(np.array([3.0, -4.0, 9.0]), np.array([0.0, 0.0, 0.0]))
    assert drift_of(residuals, np.array([1.0, 2.0, np.inf]), np.ones(3)) == pytest.approx(np.sqrt(25.0 / 5.0))
    explained = HeldOutResiduals(residuals.errors, np.array([3.0, 5.0, 1.0]))
    assert drift_of(explained, np.array([1.0, 2.0, np.inf]), np.ones(3)) == 0.0

    values = fit.values
    straying = Values(values.basis, replace(values.kernel, drift=0.5), values.tensors)
    certain = Values(values.basis, replace(values.kernel, drift=0.0), values.tensors)
    x = np.array([[0.3, 0.9, 0.3, 0.9, 0.3, 0.9], data.fractions[-1]])
    apart = distances(values.basis.places(x), values.places)
    astray = 0.5 * values.kernel.scale * values.basis.fade(x) * apart.min(axis=1)
    assert astray[0] > 0.0
    np.testing.assert_allclose(straying.astray(x, apart), astray, rtol=1e-6)
    np.testing.assert_allclose(straying.judge(x)[1], np.hypot(certain.judge(x)[1], astray), rtol=1e-6)
    np.testing.assert_array_equal(straying.judge(x)[0], certain.judge(x)[0])


def test_chunks_change_nothing(fit: ValueFit, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).uniform(0.2, 1.0, (9, 6))
    whole = fit.values.judge(x)
    monkeypatch.setattr("values.values.MAX_CHUNK", 2 * len(fit.values.places))
    for a, b in zip(fit.values.judge(x), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_two_levels_are_enough() -> None:
    anatomy = anatomy_of([64] * 6)
    space = ffn_levels(anatomy, num_levels=2, round_to=8)
    rows = np.random.default_rng(0).choice([32, 64], (80, 6))
    samples = [sample(anatomy, row) for row in {tuple(int(w) for w in row) for row in rows}]
    encoding = encode(anatomy, space, samples)
    fit = fit_values(encoding, training_data(encoding, samples))
    assert isinstance(fit.values, Values)
    assert np.isfinite(fit.values(np.full((1, 6), 0.5))).all()
