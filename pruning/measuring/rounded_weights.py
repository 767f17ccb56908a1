"""Weights of the units that a site keeps as they will be read back from few bits: for the evaluator.

Rounded to nearest with searched scales, as `lop apply` writes them: without data, so that a weight depends on nothing
but its site, its units and its bits, and is worked out once.
"""

import torch

from pruning.anatomy.architecture import Site
from pruning.anatomy.packed_weights import GROUP
from pruning.cutting.made_weights import check_made_weight
from pruning.cutting.rewriting.quantisation import IntFormat, round_to_nearest
from pruning.measuring.kept_tensors import KeptTensors

DEFAULT_ROUNDED_BYTES = 2**30
"""Of rounded weights that are kept: SmolLM2-135M's decoder in eight and in four bits, in float32, is .85 GB."""


class RoundedWeights:
    """Rounded weights by site, projection, units and bits, kept up to a bound; those beyond it are rounded each time.

    Args:
        dtype: of the checkpoint, in which scales and products are stored.
        max_bytes: bound of what is kept.
    """

    def __init__(self, dtype: torch.dtype, *, max_bytes: int = DEFAULT_ROUNDED_BYTES) -> None:
        self._dtype, self._rounded = dtype, KeptTensors(max_bytes)

    @property
    def num_bytes(self) -> int:
        """Held now."""
        return self._rounded.num_bytes

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

        def rounded() -> torch.Tensor:
            made = self._round(weight, bits, places)
            check_made_weight(made, f"{site.sublayer} of layer {site.layer} in {bits} bits")
            return made

        return self._rounded.get((site, index, units, bits), rounded)

    def _round(self, weight: torch.Tensor, bits: int, places: torch.Tensor | None) -> torch.Tensor:
        form = IntFormat(bits, GROUP)
        if places is None:
            return round_to_nearest(weight, form, None, self._dtype).weight.to(weight.dtype)
        order = places.argsort()
        rounded = round_to_nearest(weight[:, order], form, None, self._dtype).weight.to(weight.dtype)
        return rounded[:, order.argsort()]
