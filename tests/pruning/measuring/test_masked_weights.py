"""Masks of the evaluator: Wanda's in the model's own order, and bounded."""

import pytest
import torch

from pruning.anatomy.architecture import Site, Sublayer
from pruning.cutting.rewriting.sparsity import wanda
from pruning.measuring.masked_weights import MaskedWeights

SITE = Site(0, Sublayer.FFN)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_reordered_weights_lose_what_those_of_files_lose(axis: int, density: float) -> None:
    """Among equal scores, too: of whole numbers many are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-3, 4, (12, 10), generator=generator).float()
    squares = torch.randint(1, 3, (10,), generator=generator).double()
    places = torch.randperm(weight.shape[axis], generator=generator)
    reordered = weight.index_select(axis, places)
    masked = MaskedWeights({SITE: [squares]})(SITE, 0, density, reordered, axis, places)
    assert torch.equal(masked.index_select(axis, places.argsort()), wanda(weight, squares, density))


def test_masks_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit a weight; and rounds over more than fits still find what fits."""
    asked: list[float] = []

    def counted(weight: torch.Tensor, squares: torch.Tensor, density: float) -> torch.Tensor:
        asked.append(density)
        return wanda(weight, squares, density)

    monkeypatch.setattr("pruning.measuring.masked_weights.wanda", counted)
    weight, squares = torch.randn(9, 9), torch.ones(9, dtype=torch.float64)
    kept = MaskedWeights({SITE: [squares]}, max_bytes=30)
    densities = [0.2, 0.4, 0.6, 0.8]
    for _ in range(3):
        for density in densities:
            assert torch.equal(kept(SITE, 0, density, weight, 0, None), wanda(weight, squares, density))
    assert asked == [*densities, *densities[2:], *densities[2:]]
    assert kept.num_bytes == 2 * 11
