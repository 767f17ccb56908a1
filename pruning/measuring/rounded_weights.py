"""Weights of the units that a site keeps as they will be read back from few bits: for the evaluator.

Rounded to nearest with searched scales, as `lop apply` writes them: without data, so that a weight depends on nothing
but its site, its units and its bits, and is worked out once.
"""

from collections import OrderedDict

import torch

from pruning.anatomy.architecture import Site
from pruning.anatomy.packed_weights import GROUP
from pruning.cutting.made_weights import check_made_weight
from pruning.cutting.rewriting.quantisation import IntFormat, round_to_nearest

DEFAULT_ROUNDED_BYTES = 2**30
"""Of rounded weights that are kept: SmolLM2-135M's decoder in eight and in four bits, in float32, is .85 GB."""


class RoundedWeights:
    """Rounded weights by site, projection, units and bits, the last used of which are kept.

    Args:
        dtype: of the checkpoint, in which scales and products are stored.
        max_bytes: bound of what is kept.
    """

    def __init__(self, dtype: torch.dtype, *, max_bytes: int = DEFAULT_ROUNDED_BYTES) -> None:
        self._dtype, self._max_bytes = dtype, max_bytes
        self._rounded: OrderedDict[tuple[Site, int, int, int], torch.Tensor] = OrderedDict()
        self.num_bytes = 0
        """Held now."""

    def __call__(
        self, site: Site, index: int, units: int, bits: int, weight: torch.Tensor, places: torch.Tensor | None
    ) -> torch.Tensor:
        """`weight` [D, A] rounded, in its dtype.

        Args:
            site, index: which projection of which sub-layer.
            units: that the site keeps; with the other three they must name the weight.
            bits: 8 or 4.
            weight: what is kept of it.
            places: [A] where its inputs stand in the model: groups are of inputs in that order; None: as they stand.

        Raises:
            InputError: other bits.
            CheckpointError: a weight does not fit the checkpoint's dtype.
        """
        key = (site, index, units, bits)
        found = self._rounded.pop(key, None)
        if found is None:
            found = self._round(weight, bits, places)
            check_made_weight(found, f"{site.sublayer} of layer {site.layer} in {bits} bits")
            self.num_bytes += found.numel() * found.element_size()
        self._rounded[key] = found
        while self.num_bytes > self._max_bytes and len(self._rounded) > 1:
            _, oldest = self._rounded.popitem(last=False)
            self.num_bytes -= oldest.numel() * oldest.element_size()
        return found

    def _round(self, weight: torch.Tensor, bits: int, places: torch.Tensor | None) -> torch.Tensor:
        form = IntFormat(bits, GROUP)
        if places is None:
            return round_to_nearest(weight, form, None, self._dtype).weight.to(weight.dtype)
        order = places.argsort()
        rounded = round_to_nearest(weight[:, order], form, None, self._dtype).weight.to(weight.dtype)
        return rounded[:, order.argsort()]
