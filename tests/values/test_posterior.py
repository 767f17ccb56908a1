"""How sure the values are of a configuration, against the formula written out."""

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.planning.space import Space
from storage.records import Sample
from values import posterior
from values.basis import PriorOfTerms
from values.dataset import TrainingData, training_data
from values.encoding import encode
from values.posterior import Posterior
from values.value_training import ValueFit, fit_values
from values.values import distances


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
    return values.posterior.deviation(x, values.basis.own_kl(x), apart)


def test_products_of_terms_need_no_terms(fit: ValueFit, data: TrainingData) -> None:
    basis, x, y = fit.values.basis, asked(), data.fractions[::9]
    of_x, of_y = (PriorOfTerms.of(z, basis.own_kl(z)) for z in (x, y))
    terms_x, terms_y = (basis.terms(z, basis.own_kl(z)) for z in (x, y))
    np.testing.assert_allclose(of_x.covariance(of_y), terms_x @ terms_y.T, rtol=1e-9)
    np.testing.assert_allclose(of_x.variance, (terms_x**2).sum(axis=1), rtol=1e-9)


def test_places_are_read_back(fit: ValueFit, data: TrainingData) -> None:
    basis = fit.values.basis
    for x in (asked(), data.fractions, np.full((1, 6), 0.1)):
        np.testing.assert_allclose(basis.fractions_at(basis.places(x)), x, atol=1e-5)


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


def test_it_knows_measurements_and_doubts_what_only_the_regression_tells(fit: ValueFit, data: TrainingData) -> None:
    """On the way between two that were measured less than at an edge of the space that is no farther from any."""
    measured = data.fractions[fit.anchors]
    best = measured[np.argsort(-fit.weights)[:20]]
    assert deviation(fit, best).max() < 0.5 * np.median(deviation(fit, asked()))
    edge = np.array([[0.25, 1.0, 0.25, 1.0, 0.25, 1.0]])
    assert deviation(fit, edge)[0] > 1.5 * deviation(fit, best).max()


def test_fewer_anchors_are_no_surer(fit: ValueFit, monkeypatch: pytest.MonkeyPatch) -> None:
    values, x = fit.values, asked()
    monkeypatch.setattr(posterior, "MOST_ASKED", 40)
    few = Posterior(values.basis, values.kernel, values.places, values.fades, values.weights)
    apart = distances(values.basis.places(x), values.places)
    assert (few.deviation(x, values.basis.own_kl(x), apart) >= deviation(fit, x) - 1e-9).all()
