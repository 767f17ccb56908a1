"""How sure the values are of a configuration, against the formula written out."""

from dataclasses import replace

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.planning.space import Space
from storage.records import Sample
from values import posterior
from values import values as values_module
from values.basis import PriorOfTerms
from values.dataset import TrainingData, training_data
from values.encoding import encode
from values.posterior import Posterior
from values.value_training import ValueFit, fit_values
from values.values import Values, distances


@pytest.fixture(scope="module")
def data(anatomy: ModelAnatomy, space: Space, samples: list[Sample]) -> TrainingData:
    return training_data(encode(anatomy, space, samples), samples)


@pytest.fixture(scope="module")
def fit(anatomy: ModelAnatomy, space: Space, samples: list[Sample], data: TrainingData) -> ValueFit:
    return fit_values(encode(anatomy, space, samples), data)


def asked() -> FloatArray:
    x: FloatArray = np.random.default_rng(4).uniform(0.25, 1.0, (7, 6))
    return x


def deviation(fit: ValueFit, x: FloatArray) -> FloatArray:
    values = fit.values
    apart = distances(values.basis.places(x), values.places)
    return values.posterior_deviation(x, values.basis.own_kl(x), apart)


def test_products_of_terms_need_no_terms(fit: ValueFit, data: TrainingData) -> None:
    basis, x, y = fit.values.basis, asked(), data.fractions[::9]
    of_x, of_y = (PriorOfTerms.of(z, basis.own_kl(z)) for z in (x, y))
    terms_x, terms_y = (basis.terms(z, basis.own_kl(z)) for z in (x, y))
    np.testing.assert_allclose(of_x.covariance(of_y), terms_x @ terms_y.T, rtol=1e-9)
    np.testing.assert_allclose(of_x.variance, (terms_x**2).sum(axis=1), rtol=1e-9)


def test_places_are_read_back(fit: ValueFit, data: TrainingData) -> None:
    basis = fit.values.basis
    for x in (asked(), np.full((1, 6), 0.1)):
        np.testing.assert_allclose(basis.fractions_at(basis.places(x)), x, atol=1e-5)
    np.testing.assert_array_equal(basis.fractions_at(basis.places(data.fractions)), data.fractions)  # on the knots


def test_it_is_the_variance_of_kriging_with_a_prior_of_the_regression(fit: ValueFit, data: TrainingData) -> None:
    """k(x, x) - k(x, A) K(A, A)^-1 k(A, x) with k = process + slack phi phi^T, all of it written out."""
    values, kernel, x = fit.values, fit.values.kernel, asked()
    anchors = data.fractions[fit.anchors]

    def covariance(a: FloatArray, b: FloatArray) -> FloatArray:
        basis = values.basis
        process = np.exp(-distances(basis.places(a), basis.places(b)).astype(np.float64) / kernel.length)
        regression = kernel.slack * basis.terms(a, basis.own_kl(a)) @ basis.terms(b, basis.own_kl(b)).T
        found: FloatArray = (process + regression) * np.outer(basis.fade(a), basis.fade(b))
        return found

    between = covariance(anchors, anchors) + np.diag(kernel.noise**2 / fit.weights)
    towards = covariance(x, anchors)
    left = np.diag(covariance(x, x)) - (towards * np.linalg.solve(between, towards.T).T).sum(axis=1)
    expected = kernel.scale * np.sqrt(left + (kernel.noise * values.basis.fade(x)) ** 2)
    np.testing.assert_allclose(deviation(fit, x), expected, rtol=1e-3)
    assert deviation(fit, np.ones((1, 6)))[0] == 0.0  # the dense model


def test_what_only_the_regression_tells_is_doubted_and_what_was_measured_is_not(
    fit: ValueFit, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By values that know few samples, against the same whose regression has nothing to learn."""
    for module in (posterior, values_module):
        monkeypatch.setattr(module, "MOST_ASKED", 20)
    known = fit.values
    values, sure = (Values(known.basis, replace(known.kernel, slack=of), known.tensors) for of in (10.0, 1e-9))

    def more(x: FloatArray) -> FloatArray:
        own, apart = known.basis.own_kl(x), distances(known.basis.places(x), known.places)
        found: FloatArray = values.posterior_deviation(x, own, apart) / sure.posterior_deviation(x, own, apart)
        return found

    deep = np.flatnonzero(np.abs(data.retention[fit.anchors] - 0.375) < 0.02)
    measured = data.fractions[fit.anchors[deep[np.argsort(-fit.weights[deep], kind="stable")[:10]]]]
    edge = np.array([[0.25, 1.0, 0.25, 1.0, 0.25, 0.25], [1.0, 0.25, 0.25, 1.0, 0.25, 0.25]])
    assert more(edge).min() > 1.3 > 1.1 > more(measured).max()


def test_fewer_anchors_are_no_surer_and_near_ones_are_asked(fit: ValueFit, monkeypatch: pytest.MonkeyPatch) -> None:
    values, x = fit.values, asked()
    whole = deviation(fit, x)
    for module in (posterior, values_module):
        monkeypatch.setattr(module, "MOST_ASKED", 40)
    few = Values(values.basis, values.kernel, values.tensors)
    apart = distances(values.basis.places(x), values.places)
    fewer = few.posterior_deviation(x, values.basis.own_kl(x), apart)
    assert (fewer >= whole - 1e-9).all()
    assert (fewer > whole + 1e-6).any()
    one_by_one = [few.posterior_deviation(x[[i]], values.basis.own_kl(x[[i]]), apart[[i]])[0] for i in range(len(x))]
    np.testing.assert_allclose(fewer, one_by_one, rtol=1e-9)  # whatever else is judged beside it
    kept = values.basis.fractions_at(values.places) @ values.basis.shares
    for retention in (0.4, 0.9):
        near = Posterior(values.basis, values.kernel, values.places, values.fades, values.weights, retention)
        assert np.abs(kept[near.asked] - retention).max() <= np.sort(np.abs(kept - retention))[39] + posterior.BAND
