"""Elimination, against trying every unit and solving what is left by itself, each time."""

import pytest
import torch

from pruning.measuring.elimination import channel_elimination, group_elimination

DAMPING = 0.05


def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    x[:, 5] *= 300  # massive
    return x.double()


def weight() -> torch.Tensor:
    return torch.randn(7, 24, generator=torch.Generator().manual_seed(1)).double()


def plainly(w: torch.Tensor, products: torch.Tensor, size: int) -> torch.Tensor:
    """The share of the outputs that is lost once each unit of `size` inputs is gone."""
    h = products + DAMPING * torch.diag(products.diagonal())
    left = list(range(len(h) // size))
    lost = torch.empty(len(left), dtype=torch.float64)
    whole = float((w @ h @ w.T).trace())
    while left:
        losses = {}
        for unit in left:
            kept = [unit_ * size + i for unit_ in left if unit_ != unit for i in range(size)]
            change = w.clone()
            change[:, kept] -= torch.linalg.solve(h[kept][:, kept], (w @ h[:, kept]).T).T
            losses[unit] = float((change @ h @ change.T).trace())
        gone = min(left, key=lambda unit: losses[unit])
        lost[gone] = losses[gone] / whole
        left.remove(gone)
    return lost


@pytest.mark.parametrize("block", [1, 7, 64])
def test_channels_go_as_if_each_was_tried_whatever_the_block(block: int) -> None:
    products = tokens().T @ tokens()
    found = channel_elimination(weight(), products, DAMPING, block=block)
    expected = plainly(weight(), products, 1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert torch.equal(found.argsort(), expected.argsort())
    assert found.max() == pytest.approx(1.0)


@pytest.mark.parametrize("num_groups", [2, 6])
def test_groups_go_as_if_each_was_tried(num_groups: int) -> None:
    products = tokens().T @ tokens()
    found = group_elimination(weight(), products, DAMPING, num_groups=num_groups)
    torch.testing.assert_close(found, plainly(weight(), products, 24 // num_groups), rtol=1e-8, atol=1e-12)


def test_of_two_copies_one_goes_for_nothing_and_the_other_is_kept() -> None:
    """By norm times size both would rank high; once one is gone, the other does the work of both."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(3)).double()
    x[:, 1] = x[:, 0]
    w = torch.tensor([[5.0, 5.0, 1.0, 1.1]]).double()
    lost = channel_elimination(w, x.T @ x, 1e-6)
    first, last = int(lost.argmin()), int(lost.argmax())
    assert {first, last} == {0, 1}
    assert lost[first] < 1e-4


def test_inputs_that_are_always_zero_go_first() -> None:
    x = tokens()
    x[:, [2, 9]] = 0.0
    lost = channel_elimination(weight(), x.T @ x, DAMPING)
    assert set(lost.argsort()[:2].tolist()) == {2, 9}
    assert lost[[2, 9]].tolist() == [0.0, 0.0]
