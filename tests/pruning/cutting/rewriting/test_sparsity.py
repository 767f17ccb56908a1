"""Wanda and SparseGPT against plain implementations, written here, one weight at a time."""

import pytest
import torch

from pruning.cutting.rewriting.column_sweep import inverse_factor
from pruning.cutting.rewriting.sparsity import Pattern, sparsegpt, wanda
from pruning.errors import InputError


def correlated(tokens: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """[N, A] with one massive activation in the first token, as in many models."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    mixed[0, 3] = 3000.0
    return mixed


def weights(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))


def test_wanda_drops_the_least_scores_of_every_output() -> None:
    x, weight = correlated(50, 8), weights(5, 8)
    found = wanda(weight, x.square().sum(0), 0.5)
    for row, kept in zip(weight, found, strict=True):
        scores = [float(row[j].abs() * x[:, j].norm()) for j in range(8)]
        worst = sorted(range(8), key=scores.__getitem__)[:4]
        assert [j for j in range(8) if kept[j] == 0] == sorted(worst)
        assert all(kept[j] == row[j] for j in range(8) if j not in worst)


def test_numbers_of_zeros_are_exact() -> None:
    """38% of 35 weights are 13.3: 13 of them, 2 a row and one more in three rows."""
    weight = weights(5, 7)
    zeros = (wanda(weight, torch.ones(7), 0.62) == 0).sum(1)
    assert (int(zeros.sum()), set(zeros.tolist())) == (13, {2, 3})
    products = correlated(100, 200).T @ correlated(100, 200)
    swept = sparsegpt(weights(5, 200), inverse_factor(products, 0.1), 0.62)
    assert int((swept == 0).sum()) == 380
    assert not wanda(weight, torch.ones(7), 0.0).any()
    assert wanda(weight, torch.ones(7), 1.0).equal(weight)


def plain_sparsegpt(
    weight: torch.Tensor, products: torch.Tensor, damping: float, density: float, pattern: Pattern | None
) -> torch.Tensor:
    """Optimal brain surgeon, literally: for input after input, the inverse of H over what is not yet decided."""
    h, w = products.double().clone(), weight.double().clone()
    h += damping * torch.diag(h.diagonal())
    outputs, inputs = w.shape
    size = 128 if pattern is None else pattern.of
    mask = torch.zeros_like(w, dtype=torch.bool)
    for j in range(inputs):
        if j % size == 0:
            block = range(j, min(j + size, inputs))
            saliency = {
                (i, k): float(w[i, k] ** 2 / torch.linalg.inv(h[k:, k:])[0, 0]) for i in range(outputs) for k in block
            }
            if pattern is None:
                total = round(outputs * (block.stop) * (1 - density)) - int(mask.sum())
                for place in sorted(saliency, key=saliency.__getitem__)[:total]:
                    mask[place] = True
            else:
                for i in range(outputs):
                    for k in sorted(block, key=lambda k, i=i: saliency[i, k])[: pattern.of - pattern.kept]:  # type: ignore[misc]
                        mask[i, k] = True
        inverse = torch.linalg.inv(h[j:, j:])
        for i in range(outputs):
            if mask[i, j]:
                w[i, j:] -= w[i, j] / inverse[0, 0] * inverse[0]
                w[i, j] = 0
    return w


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4), Pattern(1, 4)])
def test_sparsegpt_is_optimal_brain_surgeon_column_by_column(pattern: Pattern | None) -> None:
    """160 inputs, so two blocks; fewer tokens than inputs, so that H is singular; one input that is always 0."""
    x, weight = correlated(100, 160), weights(6, 160)
    x[:, 5] = 0
    products = x.double().T @ x.double()
    products[5, 5] = 1e-300  # not 0, where the literal inverse could not be had
    density = 0.4 if pattern is None else pattern.density
    expected = plain_sparsegpt(weight, products + 0, 0.05, density, pattern)
    found = sparsegpt(weight, inverse_factor(products, 0.05), density, pattern)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    single = sparsegpt(weight, inverse_factor(products, 0.05).float(), density, pattern)
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-3)


def test_sparsegpt_loses_less_of_the_outputs_than_wanda() -> None:
    """On tokens that it did not see, of inputs that are mixed from a quarter as many."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(4000, 16, generator=generator) @ torch.randn(16, 64, generator=generator)
    x, weight = mixed + torch.randn(4000, 64, generator=generator), weights(16, 64)
    x[0, 3] = 3000.0
    fit, fresh = x[:2000], x[2000:]
    kept = wanda(weight, fit.square().sum(0), 0.5)
    solved = sparsegpt(weight, inverse_factor(fit.T @ fit, 0.01), 0.5).float()
    losses = [float((fresh @ (w - weight).T).square().sum()) for w in (solved, kept)]
    assert losses[0] < 0.5 * losses[1]


def test_patterns() -> None:
    assert (Pattern.parse("2:4"), str(Pattern(2, 4)), Pattern(4, 8).density) == (Pattern(2, 4), "2:4", 0.5)
    found = wanda(weights(3, 8), torch.ones(8), 0.0, Pattern(1, 4))
    assert ((found != 0).reshape(3, 2, 4).sum(2) == 1).all()
    for wrong in ("4:2", "0:4", "2/4", "2:2"):
        with pytest.raises(InputError, match="N:M"):
            Pattern.parse(wrong)
    with pytest.raises(InputError, match=r"whole groups of 4 .*down has 10 inputs.*or --sparsity without"):
        Pattern(2, 4).check("down", 10)
