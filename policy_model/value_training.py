"""Fitting the values: a ridge regression in closed form, then a Transformer on what it leaves unexplained.

Letters: N samples, J terms, L decoder layers, M members. Probes are members that serve to measure, and are dropped.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_model.dataset import TrainingData
from policy_model.encoding import Encoding
from policy_model.model import ModelConfig, Values, value_loss
from policy_model.schedule import scheduled

RIDGES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Ridge penalties tried; the one that predicts what members and probes leave out best is used."""

NEAR_FRONTIER = 0.5
"""Log KL above the frontier at which a sample's weight has fallen to 1/e: the values are asked about good plans."""


@dataclass(frozen=True)
class ValueFit:
    """The closed-form part of all members: `readout` [M, J], `leave_one_out` residuals [M, N], the `ridge` chosen."""

    readout: Tensor
    leave_one_out: Tensor
    ridge: float


def sample_weights(data: TrainingData) -> Tensor:
    """[N] in (0.1, 1.1]: near the frontier counts most."""
    return 0.1 + torch.exp(-data.gap / NEAR_FRONTIER)


def fit_readout(terms: Tensor, residual: Tensor, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Ridge regression of `residual` [N] on `terms` [N, J]: weights [J], and leave-one-out residuals [N].

    Minimises sum_n weights_n (residual_n - terms_n . w)^2 + ridge |w|^2 in float64. The residual of sample n under the
    fit without it is e_n / (1 - h_n), h_n its leverage; where the weight is 0 that is e_n itself.
    """
    X, y, root = terms.double(), residual.double(), weights.double().sqrt()
    weighted = X * root[:, None]
    if X.shape[0] < X.shape[1]:  # the dual problem is the smaller one
        gram = weighted @ weighted.t()
        solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), weighted)
        readout = solved.t() @ (y * root)
        leverage = (weighted * solved).sum(dim=1)
    else:
        gram = weighted.t() @ weighted
        factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        readout = torch.cholesky_solve((weighted.t() @ (y * root))[:, None], factor)[:, 0]
        leverage = torch.linalg.solve_triangular(factor, weighted.t(), upper=False).square().sum(dim=0)
    error = y - X @ readout
    return readout.float(), (error / (1.0 - leverage).clamp(min=1e-3)).float()


def draw_spread(terms: Tensor, fit: "ValueFit", weights: Tensor, count: int, seed: int) -> Tensor:
    """`count` draws [S, J] from the posterior of the regression's weights around their mean, all samples seen.

    Bayesian linear regression with prior variance s / ridge and noise variance s / weight: A = X'WX + ridge I gives the
    posterior covariance s A^-1, of which A^-1 (X'W^1/2 e + ridge^1/2 z) is a draw for standard normal e and z. s comes
    from the leave-one-out residuals of samples that each member left out. Directions that no sample decides vary most.
    """
    generator = torch.Generator().manual_seed(seed)
    weighted = terms.double() * weights.double().sqrt()[:, None]
    e = torch.randn(count, weighted.shape[0], generator=generator).double()
    z = torch.randn(count, weighted.shape[1], generator=generator).double()
    right = (e @ weighted + math.sqrt(fit.ridge) * z).t()
    if weighted.shape[0] < weighted.shape[1]:
        gram = weighted @ weighted.t()
        inner = torch.linalg.solve(gram + fit.ridge * torch.eye(len(gram), dtype=gram.dtype), weighted @ right)
        draws = (right - weighted.t() @ inner) / fit.ridge
    else:
        gram = weighted.t() @ weighted
        draws = torch.linalg.solve(gram + fit.ridge * torch.eye(len(gram), dtype=gram.dtype), right)
    scale = (weights * fit.leave_one_out.square()).mean().sqrt()
    spread: Tensor = (draws.t() * scale).float()
    return spread


def fit_regressions(terms: Tensor, residual: Tensor, weights: Tensor, held_out: Tensor) -> ValueFit:
    """The closed-form part for each row of `held_out` bool [M, N], at the penalty that predicts the held-out best."""
    best: ValueFit | None = None
    best_error = math.inf
    for ridge in RIDGES:
        fits = [fit_readout(terms, residual, weights * ~row, ridge) for row in held_out]
        fit = ValueFit(torch.stack([w for w, _ in fits]), torch.stack([e for _, e in fits]), ridge)
        error = held_out_error(fit.leave_one_out, weights, held_out)
        if error < best_error:
            best, best_error = fit, error
    assert best is not None
    return best


def held_out_error(residuals: Tensor, weights: Tensor, held_out: Tensor) -> float:
    """Weighted mean absolute residual over what each member did not see; `residuals` and `held_out` are [M, N]."""
    counted = weights * held_out
    return float((residuals.abs() * counted).sum() / counted.sum())


class ValueTraining:
    """The Transformer's steps: fits the leave-one-out residuals of the regression, keeps the best held-out state.

    Leave-one-out and not plain residuals, because those of a flexible fit are far smaller than what it leaves
    unexplained on new configurations.
    """

    def __init__(
        self, config: ModelConfig, encoding: Encoding, data: TrainingData, held_out: Tensor, *, seed: int, steps: int
    ) -> None:
        self.data, self.held_out, self.steps, self.seed = data, held_out, steps, seed
        self.values = Values(config, encoding)
        self.weights = sample_weights(data)
        share = self.values.own_kl(data.fractions)
        terms, residual = self.values.terms(data.fractions, share), data.log_kl - self.values.base(share)
        self.fit = fit_regressions(terms, residual, self.weights, held_out)
        self.values.readout.data.copy_(self.fit.readout)
        self.values.spread.data.copy_(draw_spread(terms, self.fit, self.weights, config.num_draws, seed))
        trainable = [p for p in self.values.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.1)
        self.best = {name: p.detach().clone() for name, p in self.values.state_dict().items()}
        self.best_error = self.error()
        self.best_step = 0

    def error(self) -> float:
        """Held-out weighted mean absolute error of log KL."""
        with torch.no_grad():
            residuals = self.fit.leave_one_out - self.values.correction(self.data.fractions)
        return held_out_error(residuals, self.weights, self.held_out)

    def step(self, step: int, batch_size: int, learning_rate: float) -> float:
        """One update; a function of the state, `step` and the seed only."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        index = torch.randint(self.data.num_samples, (batch_size,), generator=generator)
        self.optimizer.param_groups[0]["lr"] = scheduled(learning_rate, step, self.steps)
        predicted = self.values.correction(self.data.fractions[index])
        loss = value_loss(predicted, self.fit.leave_one_out[:, index], self.weights[index] * ~self.held_out[:, index])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 5.0)
        self.optimizer.step()
        return loss.item() / len(predicted)

    def keep_if_best(self, step: int) -> float:
        """Remember the state if its held-out error is the lowest so far; returns that error."""
        error = self.error()
        if error < self.best_error:
            self.best_error, self.best_step = error, step
            self.best = {name: p.detach().clone() for name, p in self.values.state_dict().items()}
        return error

    def held_out_residuals(self) -> Tensor:
        """[R] log KL minus prediction, for searched samples, each under every member that did not see it."""
        self.values.load_state_dict(self.best)
        with torch.no_grad():
            residuals = self.data.log_kl - self.values(self.data.fractions)
        out: Tensor = residuals[self.held_out & self.data.searched]
        return out
