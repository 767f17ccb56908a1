"""The closed form against refitting by brute force, and the Transformer's steps."""

import pytest
import torch

from policy_model.value_training import ValueFit, draw_spread, fit_readout, held_out_error


@pytest.mark.parametrize(("num_samples", "num_terms"), [(12, 4), (6, 9)])
def test_ridge_and_leave_one_out_equal_refitting(num_samples: int, num_terms: int) -> None:
    """In the primal (more samples than terms) and in the dual."""
    torch.manual_seed(0)
    X, y = torch.randn(num_samples, num_terms), torch.randn(num_samples)
    weights = torch.rand(num_samples) + 0.1
    weights[2] = 0.0

    def refit(w: torch.Tensor) -> torch.Tensor:
        A = X.double().t() @ (w[:, None] * X).double() + 0.3 * torch.eye(num_terms).double()
        solution: torch.Tensor = torch.linalg.solve(A, X.double().t() @ (w * y).double())
        return solution.float()

    readout, leave_one_out, variance = fit_readout(X, y, weights, 0.3)
    A = X.t() @ (weights[:, None] * X) + 0.3 * torch.eye(num_terms)
    torch.testing.assert_close(variance, (X @ torch.linalg.inv(A) * X).sum(dim=1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(readout, refit(weights), atol=1e-5, rtol=1e-4)
    for n in range(num_samples):
        without = weights.clone()
        without[n] = 0.0
        torch.testing.assert_close(leave_one_out[n], y[n] - X[n] @ refit(without), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("num_samples", [20, 3])
def test_draws_have_the_posterior_covariance(num_samples: int) -> None:
    torch.manual_seed(1)
    X, weights = torch.randn(num_samples, 4), torch.rand(num_samples) + 0.5
    fit = ValueFit(torch.zeros(2, 4), torch.zeros(2, num_samples), torch.zeros(2, num_samples), ridge=0.5, noise=0.1)
    draws = draw_spread(X, fit, weights, 40_000, seed=0)
    expected = 0.1**2 * torch.linalg.inv(X.t() @ (weights[:, None] * X) + 0.5 * torch.eye(4))
    torch.testing.assert_close(draws.t() @ draws / len(draws), expected, rtol=0.05, atol=float(expected.max()) * 0.03)


def test_held_out_error_counts_only_what_was_not_seen() -> None:
    residuals = torch.tensor([[1.0, -2.0, 5.0], [0.5, 9.0, 9.0]])
    unseen = torch.tensor([[True, True, False], [True, False, False]])
    assert held_out_error(residuals, torch.tensor([1.0, 2.0, 7.0]), unseen) == pytest.approx((1 + 4 + 0.5) / 4)
