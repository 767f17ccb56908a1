"""A projection whose units are in ranking order: then any number of the best ones is a prefix slice, without a copy."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pruning.anatomy.architecture import Site
from pruning.anatomy.decoder_layer import TensorSpec


class OutputSolver(Protocol):
    """Gives projections out of what is cut other weights than a slice (`pruning.measuring.solved_outputs`)."""

    def __call__(self, site: Site, weight: torch.Tensor, places: torch.Tensor | None, kept: int) -> torch.Tensor:
        """Weights [D, K] for the first `kept` (K) inputs of `weight` [D, A]; `places` [A] are where its inputs stand in
        the model, None: as they stand."""
        ...


class WeightRounder(Protocol):
    """Gives weights that are stored in few bits as they are read back (`pruning.measuring.rounded_weights`)."""

    def __call__(
        self, site: Site, index: int, units: int, bits: int, weight: torch.Tensor, places: torch.Tensor | None
    ) -> torch.Tensor:
        """`weight` [D, A] of projection `index` of a site that keeps `units`, rounded; `places` [A] are where its
        inputs stand in the model, None: as they stand."""
        ...


class WeightMasker(Protocol):
    """Sets a share of weights to zero (`pruning.measuring.masked_weights`)."""

    def __call__(
        self, site: Site, index: int, density: float, weight: torch.Tensor, axis: int, places: torch.Tensor | None
    ) -> torch.Tensor:
        """`weight` [D, A] of projection `index`, of which the share `density` stays; `places` are where its rows
        (`axis` 0) or columns (1) stand in the model, None: as they stand."""
        ...


class SlicedLinear:
    """One linear layer whose rows or columns are units (FFN channels, KV groups), reordered in place.

    Args:
        linear: the dense layer.
        spec: what its weight holds; a bias of as many rows goes with them.
        order: [units] best first; None: as they stand.
    """

    def __init__(self, linear: nn.Linear, spec: TensorSpec, order: NDArray[np.int32] | None) -> None:
        self.linear = linear
        self._axis, self._parts = spec.axis, spec.parts
        self._places: torch.Tensor | None = None
        weight, bias = linear.weight, linear.bias
        if order is not None and not np.array_equal(order, np.arange(len(order))):
            with torch.no_grad():
                places = torch.from_numpy(spec.kept_indices(order.astype(np.int64))).to(weight.device)
                weight.copy_(weight[places] if self._axis == 0 else weight[:, places])
                self._places = places
                if bias is not None and self._axis == 0:
                    bias.copy_(bias[places])
        self.weight: torch.Tensor = weight.data
        """As wide as in the dense model, in ranking order."""
        self.bias: torch.Tensor | None = None if bias is None else bias.data

    def keep(self, units: int) -> None:
        """Let the layer have its best `units` alone; runs of a fused projection are copied together."""
        if self._axis == 1:
            self.linear.weight = nn.Parameter(self.weight[:, : units * self._parts[0].size], requires_grad=False)
            return
        self.linear.weight = nn.Parameter(self._best_rows(self.weight, units), requires_grad=False)
        if self.bias is not None:
            self.linear.bias = nn.Parameter(self._best_rows(self.bias, units), requires_grad=False)

    def solve(self, site: Site, units: int, solver: OutputSolver) -> None:
        """Let a layer whose columns are units have its best `units`, with what `solver` makes of their weights."""
        solved = solver(site, self.weight, self._places, units * self._parts[0].size)
        self.linear.weight = nn.Parameter(solved, requires_grad=False)

    def round(self, site: Site, index: int, units: int, bits: int, rounder: WeightRounder) -> None:
        """Let what the layer has now be as `rounder` makes it in `bits`."""
        weight: torch.Tensor = self.linear.weight.data
        places = None if self._places is None or self._axis == 0 else self._places[: weight.shape[1]]
        rounded = rounder(site, index, units, bits, weight, places)
        self.linear.weight = nn.Parameter(rounded, requires_grad=False)

    def mask(self, site: Site, index: int, density: float, masker: WeightMasker) -> None:
        """Let the layer, which has all its units, keep the share `density` of its weights, as `masker` says."""
        assert self._axis is not None
        masked = masker(site, index, density, self.linear.weight.data, self._axis, self._places)
        self.linear.weight = nn.Parameter(masked, requires_grad=False)

    @property
    def is_output(self) -> bool:
        """Whether its columns are units, and not its rows."""
        return self._axis == 1

    def _best_rows(self, tensor: torch.Tensor, units: int) -> torch.Tensor:
        if len(self._parts) == 1:
            return tensor[: units * self._parts[0].size]
        runs = torch.split(tensor, [part.count * part.size for part in self._parts])
        return torch.cat([run[: units * part.size] for run, part in zip(runs, self._parts, strict=True)])


def output_of(projections: Sequence[SlicedLinear]) -> SlicedLinear:
    """The one of a sub-layer's projections whose columns are units."""
    return next(projection for projection in projections if projection.is_output)
