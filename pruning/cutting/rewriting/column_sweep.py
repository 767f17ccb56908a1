"""Weights rounded input by input, each error made good by the inputs that follow: what SparseGPT and GPTQ share.

Both (arXiv 2301.00774 and 2210.17323) go through the inputs of a projection in order. With U the upper Cholesky factor
of H^-1, H = sum of x x^T over calibration tokens, the weights w [D] of input i become q, and those of every later
input j change by -(w - q) U_ij / U_ii: the least change of the outputs that is left to them. What q is, a rule says.

H is damped on its diagonal first, H + d diag(H), relative to each input's own size. The papers' damping, a hundredth of
the mean of the diagonal, is next to nothing for inputs with massive activations and leaves of all others nothing but
their size, so that nothing makes errors good.

Letters: D outputs, A inputs, n inputs of a block.
"""

from typing import Protocol

import torch

from pruning.cutting.least_squares import correlations, input_sizes

BLOCK = 128
"""Inputs whose changes are gathered before all later ones are told of them, as in both papers."""


class ColumnRule(Protocol):
    """What weights become, in order.

    Attributes:
        group: inputs that are decided on together; it divides the block.
    """

    group: int

    def start(self, first: int, rows: torch.Tensor, diagonal: torch.Tensor) -> None:
        """The next group: inputs from `first`, their weights [n, D] as they are by now, and U_ii [n]."""
        ...

    def rounded(self, index: int, weights: torch.Tensor) -> torch.Tensor:
        """What the weights [D] of input `index`, of the group that was started, become."""
        ...


def inverse_factor(products: torch.Tensor, damping: float) -> torch.Tensor:
    """U [A, A], upper, in float64: (H + d diag(H))^-1 = U^T U. H may be singular; inputs that are always 0 do no harm.

    Four matrices of float64 are in memory: 32 A^2 bytes.
    """
    sizes = input_sizes(products)
    matrix = correlations(products, sizes)
    matrix.diagonal().add_(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    del matrix
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.div_(sizes)


def sweep(weight: torch.Tensor, factor: torch.Tensor, rule: ColumnRule, *, block: int = BLOCK) -> torch.Tensor:
    """The weights [D, A] that `rule` makes of `weight` [D, A], in the dtype of `factor`, U [A, A]."""
    block = max(rule.group, block // rule.group * rule.group)
    rows = weight.to(factor.dtype).T.contiguous()  # by inputs: what is worked on lies together
    for first in range(0, len(rows), block):
        stop = min(first + block, len(rows))
        own, inner = rows[first:stop], factor[first:stop, first:stop]
        diagonal = inner.diagonal()
        errors = torch.zeros_like(own)
        for i in range(stop - first):
            if i % rule.group == 0:
                rule.start(first + i, own[i : i + rule.group], diagonal[i : i + rule.group])
            rounded = rule.rounded(first + i, own[i])
            errors[i] = (own[i] - rounded) / diagonal[i]
            own[i + 1 :] -= inner[i, i + 1 :, None] * errors[i]
            own[i] = rounded
        rows[stop:] -= factor[first:stop, stop:].T @ errors
    return rows.T.contiguous()
