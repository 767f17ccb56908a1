"""Projections out of what is cut, with the weights that reconstruction would give them: for the evaluator.

`pruning.cutting.reconstruction` solves them for one architecture, from inputs that come through the layers before as
they are cut. Here inputs are those of the dense model, so that a solution belongs to one site and how much it keeps,
whatever other sites keep: a search meets it in hundreds of architectures and it is worked out once. What is written in
the end is solved from the inputs that it will have, which takes in addition what other layers lost.

Letters: D outputs, A inputs, K inputs that stay.
"""

from collections import OrderedDict
from typing import Protocol

import torch

from pruning.anatomy.architecture import Site
from pruning.cutting.least_squares import solve_with_chosen_damping
from pruning.cutting.made_weights import check_made_weight
from pruning.cutting.reconstruction import OUTPUT_ROLE
from pruning.forward.input_products import InputProducts, InputRole

DEFAULT_SOLVED_BYTES = 2**30
"""Of solved weights that are kept: all that a search of SmolLM2-135M asks for (.5 GB in float32)."""


def solving_bytes(outputs: int, inputs: int) -> int:
    """What solving takes beside the solved weights, at most, of a projection with D `outputs` and A `inputs`: its H,
    8 A^2, and 24 K^2 + 32 D K in float64 (`pruning.cutting.least_squares`), with nearly all inputs kept."""
    return 8 * inputs**2 + 24 * inputs**2 + 32 * outputs * inputs


class ProductSource(Protocol):
    """Where the H of projections are (`pruning.measuring.second_order.SecondOrderStore`)."""

    def get(self, layer: int, role: InputRole, device: torch.device) -> InputProducts:
        """H of one projection; raises CheckpointError if it is damaged or missing."""
        ...


class SolvedOutputs:
    """Solved weights by site and inputs that stay, the last used of which are kept.

    Args:
        products: of the dense model's inputs, in the model's own order.
        dtype: of the checkpoint, to which weights are rounded as they would be in its files.
        max_bytes: bound of what is kept.
    """

    def __init__(self, products: ProductSource, dtype: torch.dtype, *, max_bytes: int = DEFAULT_SOLVED_BYTES) -> None:
        self._products, self._dtype, self._max_bytes = products, dtype, max_bytes
        self._solved: OrderedDict[tuple[Site, int], torch.Tensor] = OrderedDict()
        self._last: tuple[Site, InputProducts] | None = None
        self.num_bytes = 0
        """Held now."""

    def __call__(self, site: Site, weight: torch.Tensor, places: torch.Tensor | None, kept: int) -> torch.Tensor:
        """W' [D, K] in the dtype of `weight`, for the first `kept` inputs.

        Args:
            weight: W [D, A], dense; its inputs in ranking order.
            places: [A] where each of them stands in the model; None: as they stand.
            kept: K, from 1 to A - 1.

        Raises:
            CheckpointError: a weight does not fit the checkpoint's dtype, or H cannot be read.
        """
        key = (site, kept)
        found = self._solved.pop(key, None)
        if found is None:
            found = self._solve(site, weight, places, kept)
            self.num_bytes += _bytes(found)
        self._solved[key] = found
        while self.num_bytes > self._max_bytes and len(self._solved) > 1:
            self.num_bytes -= _bytes(self._solved.popitem(last=False)[1])
        return found

    def _solve(self, site: Site, weight: torch.Tensor, places: torch.Tensor | None, kept: int) -> torch.Tensor:
        # A scan asks for one site after the other: H of the last one is the one that is needed next.
        if self._last is None or self._last[0] != site:
            products = self._products.get(site.layer, OUTPUT_ROLE[site.sublayer], weight.device)
            self._last = (site, products if places is None else _in_order(products, places))
        solved = solve_with_chosen_damping(weight, self._last[1], torch.arange(kept, device=weight.device))
        rounded = solved.weight.to(self._dtype)
        check_made_weight(rounded, f"{site.sublayer} of layer {site.layer} with {kept} inputs")
        return rounded.to(weight.dtype)


def _in_order(products: InputProducts, places: torch.Tensor) -> InputProducts:
    """H whose inputs stand in another order."""
    fit, held_out = (x[places][:, places] for x in (products.fit, products.held_out))
    return InputProducts(fit, held_out, products.fit_tokens, products.held_out_tokens)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
