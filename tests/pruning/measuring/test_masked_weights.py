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


def test_masks_are_kept_up_to_a_bound() -> None:
    weight, squares = torch.randn(8, 8), torch.ones(8, dtype=torch.float64)
    kept = MaskedWeights({SITE: [squares, squares]}, max_bytes=150)
    first = kept(SITE, 0, 0.5, weight, 0, None)
    for index, density in ((0, 0.5), (1, 0.5), (0, 0.3), (0, 0.9)):
        kept(SITE, index, density, weight, 0, None)
        assert kept.num_bytes <= 150
    assert kept.num_bytes == 128
    assert torch.equal(kept(SITE, 0, 0.5, weight, 0, None), first)
    assert int((first == 0).sum()) == 32
