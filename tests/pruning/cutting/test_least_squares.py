"""The solve, against least squares on the tokens themselves."""

import math

import numpy as np
import pytest
import torch

from pruning.cutting.least_squares import (
    DAMPINGS,
    change_of_outputs,
    output_size,
    solve_kept,
    solve_with_chosen_damping,
)
from pruning.forward.input_products import InputProducts

KEPT = torch.tensor([0, 2, 3, 7, 8])


def correlated(tokens: int, *, seed: int = 0) -> torch.Tensor:
    """Inputs [N, 12] that say much of each other, one of them a thousand times as large as the rest."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, 6, generator=generator) @ torch.randn(
        6, 12, generator=torch.Generator().manual_seed(9)
    )
    x = causes + 0.3 * torch.randn(tokens, 12, generator=generator)
    x[:, 3] *= 1000
    return x


def weight() -> torch.Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def products_of(fit: torch.Tensor, held_out: torch.Tensor) -> InputProducts:
    found = InputProducts.empty(12, torch.device("cpu"))
    found.add(fit, held_out=False)
    found.add(held_out, held_out=True)
    return found


@pytest.mark.parametrize("damping", [0.001, 0.3])
def test_it_is_the_least_squares_fit_of_the_outputs(damping: float) -> None:
    """Damping of H is as good as a few more tokens, in each of which one input stands alone."""
    x, w = correlated(200).double(), weight().double()
    alone = torch.diag((damping * x.square().sum(dim=0)).sqrt())
    rows = torch.cat([x, alone]).numpy()
    expected = np.linalg.lstsq(rows[:, KEPT.numpy()], rows @ w.numpy().T, rcond=None)[0].T
    found = solve_kept(w, x.T @ x, KEPT, damping)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-10)
    changed = x @ w.T - x[:, KEPT] @ found.T
    assert change_of_outputs(w, found, KEPT, x.T @ x) == pytest.approx(float(changed.square().sum()), rel=1e-5)


def test_what_is_removed_is_taken_over_by_its_copy() -> None:
    x = correlated(300)
    x[:, 5] = 2 * x[:, 2]
    w = weight()
    kept = torch.tensor([index for index in range(12) if index != 5])
    solved = solve_kept(w, x.T @ x, kept, 1e-6)
    expected = w[:, kept].double()
    expected[:, 2] += 2 * w[:, 5].double()
    torch.testing.assert_close(solved, expected, rtol=1e-3, atol=1e-3)


def test_without_an_end_to_damping_weights_stay_as_they_were() -> None:
    x, w = correlated(50), weight()
    assert torch.equal(solve_kept(w, x.T @ x, KEPT, math.inf), w[:, KEPT].double())
    torch.testing.assert_close(solve_kept(w, x.T @ x, KEPT, 1e9), w[:, KEPT].double(), rtol=1e-5, atol=1e-5)


def test_an_input_that_is_always_zero_does_no_harm() -> None:
    x, w = correlated(100), weight()
    x[:, [1, 7]] = 0.0  # one that goes, one that stays
    solved = solve_with_chosen_damping(w, products_of(x[:80], x[80:]), KEPT)
    assert bool(solved.weight.isfinite().all())
    assert torch.equal(solved.weight[:, 3], w[:, 7].double())


@pytest.mark.parametrize("tokens", [400, 8])
def test_damping_is_the_best_on_held_out_tokens(tokens: int) -> None:
    """Also of fewer tokens than inputs stay; then more damping is wanted."""
    fit, held_out, w = correlated(tokens), correlated(200, seed=5), weight()
    products = products_of(fit, held_out)
    solved = solve_with_chosen_damping(w, products, KEPT)
    losses = {}
    for damping in DAMPINGS:
        found = solve_kept(w, fit.T @ fit, KEPT, damping)
        changed = held_out.double() @ w.double().T - held_out[:, KEPT].double() @ found.T
        losses[damping] = float(changed.square().sum() / (held_out @ w.T).double().square().sum())
    assert solved.loss == pytest.approx(losses[solved.damping], rel=1e-3)
    assert solved.plain_loss == pytest.approx(losses[math.inf], rel=1e-3)
    assert solved.loss == pytest.approx(min(losses.values()), rel=0.02)
    assert solved.loss < 0.9 * solved.plain_loss
    torch.testing.assert_close(
        solved.weight, solve_kept(w, products.fit + products.held_out, KEPT, solved.damping), rtol=1e-9, atol=1e-9
    )


def test_where_nothing_helps_the_plain_cut_stays() -> None:
    """Held-out tokens in which what goes is the opposite of what it was."""
    x = torch.zeros(40, 12)
    x[:, 0] = torch.linspace(1, 2, 40)
    x[:, 1] = x[:, 0]
    other = x.clone()
    other[:, 1] *= -1
    w = torch.ones(5, 12)
    w[:, 0] = 2
    solved = solve_with_chosen_damping(w, products_of(x, other), torch.tensor([0]))
    assert math.isinf(solved.damping)
    assert torch.equal(solved.weight, w[:, :1].double())
    assert solved.loss == solved.plain_loss


def test_sizes_of_outputs_worked_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert output_size(torch.tensor([[1.0, 1.0]]), x.T @ x) == 9 + 9
    assert output_size(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), x.T @ x) == 1 + 16 + 9
