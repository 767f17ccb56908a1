"""What each KV group adds to the residual stream, token by token, against what the stream is there.

    c_g = mean over tokens of |o_g|^2 / |o|^2 * |a|^2 / |x + a|^2

x is the stream before attention, a what attention adds to it, o the output projection's output and o_g the part of it
that the query heads of group g make: o_g = W_out[:, g] z_g. In most families a = o, and c_g is |o_g|^2 / |x + a|^2; in
those with a norm behind attention (Gemma 2) a is what that norm makes of o.

Why relative to the stream: the norm that follows divides by its size, so that is what a change counts against. And so
massive activations survive. Where a model parks attention on its first token, the stream there is hundreds of times as
large as elsewhere; that token stays in the statistics, and weighs as much as any other. A group that makes the
activation scores where the stream is small still, before it is made. In SmolLM2-135M that is group 1 of layer 1, whose
loss alone costs 4.7 nats, more than that of any other group: it ranks first of its layer (.226 against .032 and .013),
where sums over columns ranked it second.

Letters: N tokens, D model width, A channels of all query heads, G groups.
"""

import torch
from torch import nn

from pruning.anatomy.families import Family

MAX_VALUES = 2**22
"""Outputs of one group that are worked out at once: 16 MiB in float32."""

_LEAST = 1e-30
"""Instead of a size of 0: what is divided by it is 0, too."""


def adding_attention(family: Family) -> str:
    """The module of a decoder layer whose output attention adds to the stream."""
    return family.attention_norms[1] if len(family.attention_norms) > 1 else family.attention_out


class GroupContributions:
    """Sums up c_g over batches, in float64; `out` is the output projection [D, A] of one layer."""

    def __init__(self, out: nn.Linear, num_groups: int) -> None:
        self._out, self._num_groups = out, num_groups
        self._sums = torch.zeros(num_groups, dtype=torch.float64)
        self._count = 0

    def add(self, heads: torch.Tensor, stream: torch.Tensor, added: torch.Tensor) -> None:
        """Take in N tokens: outputs of the query heads [N, A], in the order of their groups, x [N, D] and a [N, D]."""
        at_once = max(1, MAX_VALUES // stream.shape[-1])
        for z, x, a in zip(*(torch.split(rows, at_once) for rows in (heads, stream, added)), strict=True):
            self._add(z, x.float(), a.float())

    def _add(self, heads: torch.Tensor, stream: torch.Tensor, added: torch.Tensor) -> None:
        size = added.shape[-1]
        whole = torch.zeros(len(heads), size, device=heads.device)
        squares = []
        for z, weight in zip(self._by_group(heads), self._by_group(self._out.weight), strict=True):
            own = (z.to(weight.dtype) @ weight.T).float()
            whole += own
            squares.append(own.square().sum(dim=1))
        relative = added.square().sum(dim=1) / (whole.square().sum(dim=1) + _LEAST)
        weights = relative / ((stream + added).square().sum(dim=1) + _LEAST)
        self._sums += (torch.stack(squares) * weights).double().sum(dim=1).cpu()
        self._count += len(heads)

    def _by_group(self, columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(columns, columns.shape[1] // self._num_groups, dim=1)

    @property
    def mean(self) -> torch.Tensor:
        """c [G]."""
        return self._sums / max(self._count, 1)
