"""The best weights of what is kept: a least-squares solve takes over the work of what is removed, as far as inputs of a
projection are correlated.

With H = sum of x x^T over calibration tokens and S the inputs that stay, W' minimises the change of the projection's
outputs, sum of |W x - W' x_S|^2:

    W' = W H[:, S] H[S, S]^-1

(optimal brain surgeon's update for all removed inputs at once; SlimGPT, arXiv 2412.18110, and ZipLM, arXiv 2302.04089,
use it for structured pruning). H is damped first, on its diagonal, H + d diag(H), in both factors. So W' is drawn
towards the weights as they were: with d = infinity it is the plain cut, W[:, S], and never worse than that for want of
data. Relative to each input's own size, since massive activations make some diagonal elements a million times as large
as others. d is chosen by what W' does to tokens that it was not fitted to.

Letters: D outputs, A inputs, K inputs that stay.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from pruning.forward.input_products import InputProducts

DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf)
"""What d is chosen from. Held-out losses fall and then rise along it, but for noise."""

_FIRST_TRIED = 4


@dataclass(frozen=True, eq=False)
class Solved:
    """Weights of what is kept, and what they cost on held-out tokens.

    Attributes:
        weight: [D, K] float64, of all tokens.
        damping: d, chosen on the tokens held out.
        loss: sum of |W x - W' x_S|^2 over sum of |W x|^2 on held-out tokens, W' of the others; 0 to about 1.
        plain_loss: the same for W[:, S]: what a plain cut loses.
    """

    weight: torch.Tensor
    damping: float
    loss: float
    plain_loss: float


def solve_kept(weight: torch.Tensor, products: torch.Tensor, kept: torch.Tensor, damping: float) -> torch.Tensor:
    """W' [D, K], in float64.

    Args:
        weight: W [D, A].
        products: H [A, A].
        kept: S, indices [K].
        damping: d, relative to each diagonal element of H; over 0 where H may be singular.
    """
    return _Problem(weight, [products], kept).solution(damping)


def solve_with_chosen_damping(weight: torch.Tensor, products: InputProducts, kept: torch.Tensor) -> Solved:
    """W' with the damping that is best on the held-out tokens, then solved from all of them. Shapes as `solve_kept`."""
    damping, loss, plain_loss = _chosen_damping(weight, products, kept)
    solved = _Problem(weight, [products.fit, products.held_out], kept).solution(damping)
    return Solved(solved, damping, loss, plain_loss)


def _chosen_damping(weight: torch.Tensor, products: InputProducts, kept: torch.Tensor) -> tuple[float, float, float]:
    """`damping`, `loss` and `plain_loss` of `Solved`."""
    problem, held_out = _Problem(weight, [products.fit], kept), products.held_out
    size = output_size(weight, held_out) or 1.0
    losses: dict[int, float] = {}

    def loss(index: int) -> float:
        if index not in losses:
            losses[index] = change_of_outputs(weight, problem.solution(DAMPINGS[index]), kept, held_out)
        return losses[index]

    best = downhill(loss, len(DAMPINGS), _FIRST_TRIED)
    plain = loss(len(DAMPINGS) - 1)
    if loss(best) >= plain:
        best = len(DAMPINGS) - 1
    return DAMPINGS[best], loss(best) / size, plain / size


def change_of_outputs(weight: torch.Tensor, solved: torch.Tensor, kept: torch.Tensor, products: torch.Tensor) -> float:
    """Sum of |W x - W' x_S|^2 over the tokens of `products` [A, A]; `weight` [D, A], `solved` [D, K], `kept` [K]."""
    change = weight.to(torch.float32, copy=True)
    change[:, kept] = (weight[:, kept].double() - solved).float()
    return output_size(change, products)


def output_size(weight: torch.Tensor, products: torch.Tensor) -> float:
    """tr(W H W^T): the sum of |W x|^2 over the tokens of H [A, A], of W [D, A]."""
    rows = weight.float()
    # Products in float32, like H itself; their sum in float64.
    return max(0.0, float(((rows @ products.float()) * rows).sum(dtype=torch.float64)))


def input_sizes(products: torch.Tensor) -> torch.Tensor:
    """[A] root of the diagonal of H, in float64; 1 for inputs that are always 0, of which any weight is as good."""
    return _roots(products.diagonal())


def _roots(diagonal: torch.Tensor) -> torch.Tensor:
    wide = diagonal.double()
    return torch.where(wide > 0, wide.sqrt(), 1.0)


def correlations(products: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """H / (sizes sizes^T) in float64: on its diagonal 1, so that d diag(H) is d there."""
    return (products.double() / sizes[:, None]).div_(sizes)


class _Problem:
    """One solve for every damping, in units of each input's size. H is the sum of `products`, each [A, A].

    Of H, only the rows of removed inputs and those of kept ones are widened to float64, one after the other.
    """

    def __init__(self, weight: torch.Tensor, products: Sequence[torch.Tensor], kept: torch.Tensor) -> None:
        self._weight, self._kept = weight, kept
        sizes = _roots(reduce(torch.add, [x.diagonal() for x in products]))
        self._sizes = sizes[kept]
        is_removed = torch.ones(len(sizes), dtype=torch.bool, device=sizes.device)
        is_removed[kept] = False
        removed = is_removed.nonzero()[:, 0]

        def rows(of: torch.Tensor) -> torch.Tensor:
            found = reduce(torch.add, [x[of[:, None], kept] for x in products]).double()
            return found.div_(self._sizes).div_(sizes[of, None])

        # [D, K] what of the removed inputs' work the kept ones see
        self._lost = (weight[:, removed].double() * sizes[removed]) @ rows(removed)
        self._inside = rows(kept)

    def solution(self, damping: float) -> torch.Tensor:
        plain = self._weight[:, self._kept].double()
        if math.isinf(damping):
            return plain
        # Of an input that is always 0 the diagonal element is 0, and `damping` then.
        factor = torch.linalg.cholesky(self._damped(damping))
        taken_over = torch.cholesky_solve(self._lost.T, factor).T
        return plain.add_(taken_over.div_(self._sizes))

    def _damped(self, damping: float) -> torch.Tensor:
        matrix = self._inside.clone()
        matrix.diagonal().add_(damping)
        return matrix


def downhill(loss: Callable[[int], float], count: int, first: int) -> int:
    """The index of the least loss of `count` that is found by walking down from `first`; every value costs a solve."""
    best = first
    for step in (1, -1):
        start = best
        while 0 <= best + step < count and loss(best + step) < loss(best):
            best += step
        if best != start:
            break
    return best
