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
    """The closed-form part of all members: `readout` [M, J], `leave_one_out` residuals [M, N], the `ridge` chosen.

    `variance` [M, N] is that of the fit at each sample, and `noise` the standard deviation of a sample of weight 1:
    the posterior standard deviation at sample n is noise * sqrt(variance_n), see `draw_spread`.
    """

    readout: Tensor
    leave_one_out: Tensor
    variance: Tensor
    ridge: float
    noise: float


def sample_weights(data: TrainingData) -> Tensor:
    """[N] in (0.1, 1.1]: near the frontier counts most."""
    return 0.1 + torch.exp(-data.gap / NEAR_FRONTIER)


def fit_readout(terms: Tensor, residual: Tensor, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of `residual` [N] on `terms` [N, J]: weights [J], leave-one-out residuals [N], variances [N].

    Minimises sum_n weights_n (residual_n - terms_n . w)^2 + ridge |w|^2 in float64. The residual of sample n under the
    fit without it is e_n / (1 - h_n), h_n = weight_n v_n its leverage and v_n = x_n A^-1 x_n its variance, for
    A = X'WX + ridge I; where the weight is 0 that is e_n itself.
    """
    X, y, root = terms.double(), residual.double(), weights.double().sqrt()
    weighted = X * root[:, None]
    if X.shape[0] < X.shape[1]:  # the dual problem is the smaller one
        gram = weighted @ weighted.t()
        cross = X @ weighted.t()
        solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), cross.t())  # [N, N]
        readout = weighted.t() @ torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), y * root)
        variance = (X.square().sum(dim=1) - (cross.t() * solved).sum(dim=0)) / ridge
    else:
        gram = weighted.t() @ weighted
        factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        readout = torch.cholesky_solve((weighted.t() @ (y * root))[:, None], factor)[:, 0]
        variance = torch.linalg.solve_triangular(factor, X.t(), upper=False).square().sum(dim=0)
    leverage = weights.double() * variance
    leave_one_out = (y - X @ readout) / (1.0 - leverage).clamp(min=1e-3)
    return readout.float(), leave_one_out.float(), variance.clamp(min=0.0).float()


def draw_spread(terms: Tensor, fit: "ValueFit", weights: Tensor, count: int, seed: int) -> Tensor:
    """`count` draws [S, J] from the posterior of the regression's weights around their mean, all samples seen.

    Bayesian linear regression with prior variance s / ridge and noise variance s / weight: A = X'WX + ridge I gives the
    posterior covariance s A^-1, s = noise^2, and A^-1 (X'W^1/2 e + ridge^1/2 z) is a draw of covariance A^-1 for
    standard normal e and z. Directions that no sample decides vary most.
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
    spread: Tensor = (draws.t() * fit.noise).float()
    return spread


def fit_regressions(terms: Tensor, residual: Tensor, weights: Tensor, held_out: Tensor) -> ValueFit:
    """The closed-form part for each row of `held_out` bool [M, N], at the penalty that predicts the held-out best."""
    best: ValueFit | None = None
    best_error = math.inf
    for ridge in RIDGES:
        fits = [fit_readout(terms, residual, weights * ~row, ridge) for row in held_out]
        readout, residuals, variance = (torch.stack(parts) for parts in zip(*fits, strict=True))
        # Of a leave-one-out residual the variance is noise^2 (1 / weight + v), v without the sample; 1 / weight leads.
        noise = float((weights * residuals.square()).mean().sqrt())
        fit = ValueFit(readout, residuals, variance, ridge, noise)
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

    def held_out_scores(self) -> Tensor:
        """[R] residuals of searched samples under every member that did not see them, in units of what was expected.

        That is the posterior standard deviation of the member's regression together with the noise.
        """
        self.values.load_state_dict(self.best)
        with torch.no_grad():
            residuals = self.data.log_kl - self.values(self.data.fractions)
        expected = self.fit.noise * (1.0 + self.fit.variance).sqrt()
        scores: Tensor = (residuals / expected)[self.held_out & self.data.searched]
        return scores
