"""FFN channels put in ranking order once: then every width is a prefix slice of the same weights, without a copy."""

from collections.abc import Sequence

import torch
from torch import nn

from pruning.anatomy.decoder_view import DecoderView
from pruning.forward.compensation import compensated_bias
from pruning.planning.ranking import Ranking


class SlicedFfn:
    """The FFN projections of a model whose channels are reordered in place, which leaves its function as it was."""

    def __init__(self, view: DecoderView, ranking: Ranking) -> None:
        self._view, self._ranking = view, ranking
        self._biases: dict[tuple[int, int], nn.Parameter | None] = {}
        self._weights: list[list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]]] = []
        with torch.no_grad():
            for layer, order in enumerate(ranking.ffn):
                device = view.out_projection(layer).weight.device
                self._weights.append(self._reorder(layer, torch.from_numpy(order).long().to(device)))
        self.dense_widths = tuple(out.weight.shape[1] for *_, (out, _, _) in self._weights)

    def slice(self, widths: Sequence[int]) -> None:
        """Let every layer keep its `widths` [L] best channels; a fused projection's are copied together."""
        for layer, (width, projections) in enumerate(zip(widths, self._weights, strict=True)):
            *into, (out, out_weight, _) = projections
            for linear, weight, bias in into:
                linear.weight = nn.Parameter(self._best_rows(layer, weight, width), requires_grad=False)
                if bias is not None:
                    linear.bias = nn.Parameter(self._best_rows(layer, bias, width), requires_grad=False)
            out.weight = nn.Parameter(out_weight[:, :width], requires_grad=False)
            if self._ranking.compensates:
                out.register_parameter("bias", self._out_bias(layer, width))

    def _reorder(self, layer: int, order: torch.Tensor) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]]:
        """Permute the channels of one FFN in place; returns its projections with their full weights."""
        full: list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]] = []
        for linear in self._view.in_projections(layer):
            for rows in self._view.channel_rows(
                layer, [linear.weight, *([] if linear.bias is None else [linear.bias])]
            ):
                rows.copy_(rows[order])
            full.append((linear, linear.weight.data, None if linear.bias is None else linear.bias.data))
        out = self._view.out_projection(layer)
        out.weight.copy_(out.weight[:, order])
        full.append((out, out.weight.data, None if out.bias is None else out.bias.data))
        return full

    def _best_rows(self, layer: int, tensor: torch.Tensor, width: int) -> torch.Tensor:
        """Rows of the `width` best channels: a slice, or, of a fused projection, the slices of its halves together."""
        dense = self.dense_widths[layer]
        if len(tensor) == dense:
            return tensor[:width]
        return torch.cat([part[:width] for part in torch.split(tensor, dense)])

    def _out_bias(self, layer: int, width: int) -> nn.Parameter | None:
        """The bias [D] of a down projection whose ranking compensates for removed channels; each worked out once."""
        if (layer, width) not in self._biases:
            _, weight, bias = self._weights[layer][-1]
            if width < self.dense_widths[layer]:
                order = torch.from_numpy(self._ranking.ffn[layer]).long().to(weight.device)
                bias = compensated_bias(weight[:, order.argsort()], bias, self._ranking, layer, width)
            self._biases[layer, width] = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return self._biases[layer, width]
