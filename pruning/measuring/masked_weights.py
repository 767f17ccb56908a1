"""Weights of which a share is zeroed by Wanda (arXiv 2306.11695): for the evaluator, where a search chooses densities.

Scores are from the inputs of the dense model, so that a mask depends on nothing but its weight and its density, and is
worked out once, whatever other sub-layers lose. `lop sparsify` passes inputs through the layers that it has sparsified
already, unless it is told `--inputs dense`: then it writes what is scored here.

Letters: D outputs, A inputs.
"""

from collections import OrderedDict

import torch

from pruning.anatomy.architecture import Site
from pruning.cutting.rewriting.dense_squares import SiteSquares
from pruning.cutting.rewriting.sparsity import wanda

DEFAULT_MASK_BYTES = 2**30
"""Of masks that are kept, a byte a weight: SmolLM2-135M's decoder at eight densities and LLaVA-1.5-7B's at a sixth of
one."""


class MaskedWeights:
    """Masks by site, projection and density, the last used of which are kept.

    Args:
        squares: sums of the squares of the dense model's inputs, in its own order.
        max_bytes: bound of what is kept.
    """

    def __init__(self, squares: SiteSquares, *, max_bytes: int = DEFAULT_MASK_BYTES) -> None:
        self._squares, self._max_bytes = squares, max_bytes
        self._masks: OrderedDict[tuple[Site, int, float], torch.Tensor] = OrderedDict()
        self.num_bytes = 0
        """Held now."""

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
        key = (site, index, density)
        zeroed = self._masks.pop(key, None)
        if zeroed is None:
            squares = self._squares[site][index].to(weight.device)
            if places is None:
                zeroed = _zeroed(weight, squares, density)
            else:
                own = weight.index_select(axis, places.argsort())
                zeroed = _zeroed(own, squares, density).index_select(axis, places)
            self.num_bytes += zeroed.numel()
        self._masks[key] = zeroed
        while self.num_bytes > self._max_bytes and len(self._masks) > 1:
            self.num_bytes -= self._masks.popitem(last=False)[1].numel()
        return weight.masked_fill(zeroed, 0)


def _zeroed(weight: torch.Tensor, squares: torch.Tensor, density: float) -> torch.Tensor:
    """[D, A] true where Wanda leaves 0."""
    return wanda(weight, squares, density) == 0
