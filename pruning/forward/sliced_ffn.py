"""FFN channels put in ranking order once: then every width is a prefix slice of the same weights, without a copy."""

from collections.abc import Sequence

import torch
from torch import nn

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.decoder_view import DecoderView
from pruning.checkpoints.resizing import weights_of
from pruning.forward.compensation import compensated_bias
from pruning.forward.sliced_linear import OutputSolver, SlicedLinear, WeightMasker, WeightRounder, output_of
from pruning.planning.ranking import Ranking


class SlicedFfn:
    """The FFN projections of a model whose channels are reordered in place, which leaves its function as it was."""

    def __init__(
        self,
        view: DecoderView,
        layers: Sequence[DecoderLayer],
        ranking: Ranking,
        solver: OutputSolver | None = None,
    ) -> None:
        self._ranking, self._solver = ranking, solver
        self._biases: dict[tuple[int, int], nn.Parameter | None] = {}
        self._projections = [
            [SlicedLinear(linear, spec, order) for linear, spec in weights_of(view, layer, Sublayer.FFN)]
            for layer, order in zip(layers, ranking.ffn, strict=True)
        ]
        self.dense_widths = tuple(layer.ffn_width for layer in layers)

    def slice(self, widths: Sequence[int]) -> None:
        """Let every layer keep its `widths` [L] best channels; of one that keeps none nothing is left to run."""
        for layer, (width, projections) in enumerate(zip(widths, self._projections, strict=True)):
            for projection in projections:
                projection.keep(width)
            if self._solver is not None and 0 < width < self.dense_widths[layer]:
                output_of(projections).solve(Site(layer, Sublayer.FFN), width, self._solver)
            if self._ranking.compensates and width:
                projections[-1].linear.register_parameter("bias", self._out_bias(layer, width))

    def round(self, layer: int, width: int, bits: int, rounder: WeightRounder) -> None:
        """Let the `width` channels that `layer` was sliced to be in `bits`, until it is sliced again."""
        for index, projection in enumerate(self._projections[layer]):
            projection.round(Site(layer, Sublayer.FFN), index, width, bits, rounder)

    def mask(self, layer: int, density: float, masker: WeightMasker) -> None:
        """Let `layer`, which keeps all channels, keep the share `density` of its weights, until it is sliced again."""
        for index, projection in enumerate(self._projections[layer]):
            projection.mask(Site(layer, Sublayer.FFN), index, density, masker)

    def _out_bias(self, layer: int, width: int) -> nn.Parameter | None:
        """The bias [D] of a down projection whose ranking compensates for removed channels; each worked out once."""
        if (layer, width) not in self._biases:
            out = self._projections[layer][-1]
            weight, bias = out.weight, out.bias
            if width < self.dense_widths[layer]:
                order = torch.from_numpy(self._ranking.ffn[layer]).long().to(weight.device)
                bias = compensated_bias(weight[:, order.argsort()], bias, self._ranking, layer, width)
            self._biases[layer, width] = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return self._biases[layer, width]
