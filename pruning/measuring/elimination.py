"""Ranking by elimination: units go one after the other, each time the one whose loss after compensation is least.

Optimal brain surgeon (Hassibi and Stork, 1993) for whole columns of a projection, as ZipLM (arXiv 2302.04089) and
SlimGPT (arXiv 2412.18110) use it: with P = H^-1, taking away the inputs g of W and re-solving all others costs

    tr(W_g P_gg^-1 W_g^T),    then W <- W - W_g P_gg^-1 P_g,    P <- P - P_,g P_gg^-1 P_g,

so that W and P are always those of what is left. A channel is one input, a KV group those of all its query heads. H is
damped as reconstruction damps it (`pruning.cutting.least_squares`), relative to each input's own size.

The cost, for A channels of a projection with D outputs: what the going of a block of channels changes in W and P is
applied as two matrix products, which leaves the order as it is. Together A^2 (A / 3 + D / 2) multiply-adds, as P and W
shrink, and one pass over W a channel. 1,536 channels of 576 outputs take 4.4 s on one core. For 11,008 channels of
4,096 outputs (7B) that formula says 0.7 T multiply-adds and 2 TB read from memory a layer: some minutes on two cores.
Memory is about 40 A^2 bytes, H with them: 5 GB.

Letters: D outputs, A inputs, G groups.
"""

import torch

from pruning.cutting.least_squares import correlations, input_sizes

BLOCK = 64
"""Channels that go before their changes are applied."""


def channel_elimination(
    weight: torch.Tensor, products: torch.Tensor, damping: float, *, block: int = BLOCK
) -> torch.Tensor:
    """[A] float64: what the outputs have lost once each channel is gone, with those that go before it.

    Relative to the outputs' size, tr(W H W^T) with H damped: 0 to 1, and the larger, the longer a channel is kept.

    Args:
        weight: W [D, A].
        products: H [A, A].
        damping: relative to each diagonal element of H; over 0.
    """
    W, P, size = _problem(weight, products, damping)
    losses = torch.empty(len(P), dtype=torch.float64)
    left = torch.arange(len(P), device=P.device)
    lost = 0.0
    while len(left):
        gone, increments, U, V = _block_of_channels(W, P, min(block, len(left)))
        for channel, increment in zip(left[gone].tolist(), increments, strict=True):
            lost += max(0.0, increment)
            losses[channel] = lost
        stays = torch.ones(len(left), dtype=torch.bool, device=P.device)
        stays[gone] = False
        left, U = left[stays], U[:, stays]
        P = P[stays][:, stays].addmm_(U.T, U, alpha=-1.0)
        W = W[:, stays].addmm_(V.T, U, alpha=-1.0)
    return losses / size


def _block_of_channels(
    W: torch.Tensor, P: torch.Tensor, count: int
) -> tuple[torch.Tensor, list[float], torch.Tensor, torch.Tensor]:
    """The next `count` channels to go, what each costs, and what their going changes: P by -U^T U, W by -V^T U."""
    inverse_diagonal, norms = P.diagonal().clone(), W.square().sum(dim=0)
    U, V = W.new_zeros(count, P.shape[1]), W.new_zeros(count, len(W))
    gone: list[int] = []
    increments: list[float] = []
    for step in range(count):
        costs = norms / inverse_diagonal
        costs[gone] = torch.inf
        channel = int(costs.argmin())
        increments.append(float(costs[channel]))
        root = inverse_diagonal[channel].sqrt()
        before = U[:step, channel]
        u = (P[channel] - before @ U[:step]) / root
        v = (W[:, channel] - before @ V[:step]) / root
        # Of all columns w of what W is by now: |w - v u|^2 from |w|^2.
        along = v @ W - (V[:step] @ v) @ U[:step]
        norms += u * (u * v.square().sum() - 2.0 * along)
        inverse_diagonal -= u.square()
        norms.clamp_(min=0.0)
        U[step], V[step] = u, v
        gone.append(channel)
    return torch.tensor(gone, device=P.device), increments, U, V


def group_elimination(weight: torch.Tensor, products: torch.Tensor, damping: float, *, num_groups: int) -> torch.Tensor:
    """[G] float64: as `channel_elimination`, for groups of A / G neighbouring inputs."""
    W, P, size = _problem(weight, products, damping)
    parts = torch.arange(len(P), device=P.device).view(num_groups, -1)
    losses = torch.empty(num_groups, dtype=torch.float64)
    left = list(range(num_groups))
    lost = 0.0
    while left:
        solved = {group: torch.linalg.solve(P[parts[group]][:, parts[group]], W[:, parts[group]].T) for group in left}
        costs = {group: float((x * W[:, parts[group]].T).sum()) for group, x in solved.items()}
        group = min(left, key=lambda x: costs[x])
        lost += max(0.0, costs[group])
        losses[group] = lost
        left.remove(group)
        own, rows = parts[group], P[parts[group]].clone()
        W -= solved[group].T @ rows
        P -= rows.T @ torch.linalg.solve(P[own][:, own], rows)
    return losses / size


def _problem(weight: torch.Tensor, products: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """W [D, A] and P [A, A] in units of each input's size, and the size of the outputs."""
    sizes = input_sizes(products)
    matrix = correlations(products, sizes)
    matrix.diagonal().add_(damping)
    # What is always 0 changes no output, whatever its weight.
    W = weight.double() * torch.where(products.diagonal() > 0, sizes, 0.0)
    size = float(((W @ matrix) * W).sum())
    return W, torch.cholesky_inverse(torch.linalg.cholesky(matrix)), size or 1.0
