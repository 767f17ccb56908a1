"""Rounding and GPTQ against plain implementations, written here."""

import pytest
import torch

from pruning.cutting.rewriting.column_sweep import inverse_factor
from pruning.cutting.rewriting.quantisation import FRACTIONS, IntFormat, Quantised, gptq, round_to_nearest
from pruning.errors import InputError


def weights(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))


def plain_scale(group: list[float], importance: list[float], bits: int) -> float:
    least, best = float("inf"), 0.0
    for fraction in FRACTIONS:
        scale = max(map(abs, group)) / (2 ** (bits - 1) - 0.5) * fraction
        error = 0.0
        for w, h in zip(group, importance, strict=True):
            code = min(max(round(w / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
            error += h * (w - scale * code) ** 2
        if error < least:
            least, best = error, scale
    return best


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_the_best_of_those_searched(bits: int) -> None:
    weight, importance = weights(2, 64), torch.rand(64, generator=torch.Generator().manual_seed(2))
    weight[1, 32:] = 0
    found = round_to_nearest(weight, IntFormat(bits, 32), importance, torch.float32)
    for row in range(2):
        for group in range(2):
            own = slice(32 * group, 32 * group + 32)
            if weight[row, own].any():
                scale = plain_scale(weight[row, own].tolist(), importance[own].tolist(), bits)
                assert float(found.scales[row, group]) == pytest.approx(scale, rel=1e-5)
    assert not found.weight[1, 32:].any()
    assert int(found.codes.min()) >= -(2 ** (bits - 1))
    assert float((found.weight - weight).norm() / weight.norm()) < (0.12 if bits == 4 else 0.01)


@pytest.mark.parametrize("keeps_zeros", [False, True])
def test_gptq_is_rounding_with_the_error_made_good_by_optimal_brain_surgeon(keeps_zeros: bool) -> None:
    """Literally: for input after input, the inverse of H over what is not yet rounded. 160 inputs: two blocks. Zeros
    that are kept count as zeros where scales are searched, and what is lost there is made good like any error."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 40, generator=generator) @ torch.randn(40, 160, generator=generator)
    x[0, 7] = 2000.0
    products, weight = x.double().T @ x.double(), weights(4, 160).double()
    factor, form = inverse_factor(products, 0.05), IntFormat(4, 32)
    zeros = torch.rand(weight.shape, generator=generator) < (0.5 if keeps_zeros else 0.0)
    weight[zeros] = 0
    found = gptq(weight, factor, form, torch.float64, zeros if keeps_zeros else None)
    h = products + 0.05 * torch.diag(products.diagonal())
    w, scales = weight.clone(), []
    for j in range(160):
        if j % 32 == 0:
            h_j = [1.0 / float(torch.linalg.inv(h[k:, k:])[0, 0]) for k in range(j, j + 32)]
            scales.append([plain_scale(row[j : j + 32].tolist(), h_j, 4) for row in w.masked_fill(zeros, 0)])
        inverse = torch.linalg.inv(h[j:, j:])
        for i in range(4):
            scale = scales[-1][i]
            rounded = 0.0 if zeros[i, j] else scale * min(max(round(float(w[i, j]) / scale), -8), 7)
            w[i, j:] -= (w[i, j] - rounded) / inverse[0, 0] * inverse[0]
            w[i, j] = rounded
    torch.testing.assert_close(found.weight, w, rtol=1e-6, atol=1e-8)
    assert not found.codes[zeros].any()
    losses = [
        float(((y - weight) @ products * (y - weight)).sum())
        for y in (found.weight, round_to_nearest(weight, form, None, torch.float64).weight.double())
    ]
    assert losses[0] < 0.5 * losses[1]


def test_what_is_read_back_is_rounded_as_it_is_stored() -> None:
    """In bfloat16 3 x 0.1001 is 0.3008."""
    scale = torch.tensor([[0.1001]]).bfloat16()
    quantised = Quantised(torch.tensor([[3, -8]], dtype=torch.int8), scale)
    assert quantised.weight.dtype is torch.bfloat16
    assert quantised.weight.tolist() == [[float(torch.tensor(3.0).bfloat16() * scale[0, 0]), -8 * float(scale)]]


def test_formats_that_fit_nothing() -> None:
    with pytest.raises(InputError, match=r"bits must be one of 4, 8 \(got 3\)"):
        IntFormat(3, 32)
    with pytest.raises(InputError, match=r"down of layer 3 has 576 inputs\). Choose --group 64"):
        IntFormat(4, 128).check("down of layer 3", 576)
    with pytest.raises(InputError, match="No group size divides them"):
        IntFormat(4, 128).check("down", 48)
