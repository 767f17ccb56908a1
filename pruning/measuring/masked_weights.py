"""Weights of which a share is zeroed by Wanda (arXiv 2306.11695): for the evaluator, where a search chooses densities.

Scores are from the inputs of the dense model, so that a mask depends on nothing but its weight and its density, and is
worked out once, whatever other sub-layers lose. `lop sparsify` passes inputs through the layers that it has sparsified
already, unless it is told `--inputs dense`: then it writes what is scored here.

Letters: D outputs, A inputs.
"""

import torch
from torch.nn.functional import pad

from pruning.anatomy.architecture import Site
from pruning.cutting.rewriting.dense_squares import SiteSquares
from pruning.cutting.rewriting.sparsity import wanda
from pruning.measuring.kept_tensors import KeptTensors

DEFAULT_MASK_BYTES = 2**30
"""Of masks that are kept, a bit a weight: SmolLM2-135M's decoder at eight densities takes .1 GB, LLaVA-1.5-7B's at one
.8."""


class MaskedWeights:
    """Masks by site, projection and density, kept up to a bound; those beyond it are worked out anew each time.

    Args:
        squares: sums of the squares of the dense model's inputs, in its own order.
        max_bytes: bound of what is kept.
    """

    def __init__(self, squares: SiteSquares, *, max_bytes: int = DEFAULT_MASK_BYTES) -> None:
        self._squares, self._masks = squares, KeptTensors(max_bytes)

    @property
    def num_bytes(self) -> int:
        """Held now."""
        return self._masks.num_bytes

    def __call__(
        self, site: Site, index: int, density: float, weight: torch.Tensor, axis: int, places: torch.Tensor | None
    ) -> torch.Tensor:
        """`weight` [D, A] with zeros, in its dtype.

        Args:
            site, index: which projection of which sub-layer.
            density: share that stays.
            weight: all of it.
            axis, places: its rows (0) or columns (1) stand there in the model; None: all as they stand. Of equal scores
                the first in the model's order goes, as in files.
        """

        def mask() -> torch.Tensor:
            squares = self._squares[site][index].to(weight.device)
            if places is None:
                return _packed(_zeroed(weight, squares, density))
            own = weight.index_select(axis, places.argsort())
            return _packed(_zeroed(own, squares, density).index_select(axis, places))

        return weight.masked_fill(_unpacked(self._masks.get((site, index, density), mask), weight.shape), 0)


def _zeroed(weight: torch.Tensor, squares: torch.Tensor, density: float) -> torch.Tensor:
    """[D, A] true where Wanda leaves 0."""
    return wanda(weight, squares, density) == 0


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """[ceil(D A / 8)] uint8, eight elements of `mask` [D, A] a byte, on its device."""
    flat = mask.flatten().to(torch.uint8)
    return (pad(flat, (0, -len(flat) % 8)).view(-1, 8) << _places_of_bits(mask.device)).sum(dim=1, dtype=torch.uint8)


def _unpacked(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`mask` [D, A] of that shape again."""
    bits = packed[:, None] & (1 << _places_of_bits(packed.device))
    return bits.flatten()[: shape.numel()].view(shape) != 0


def _places_of_bits(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
