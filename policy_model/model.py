"""The networks of the predictor: a policy that decodes a configuration, and the values that judge a complete one.

Letters: B batch, L decoder layers, K levels, D model width, H heads, M ensemble members, F static features a layer.

Design:
- Two towers, no shared weights: the policy is trained against the frozen value, as an actor against its critic.
- Policy: a prefix Transformer. L prefix tokens, one per decoder layer, see each other; L decision tokens see the whole
  prefix and the decisions before them. The prefix does not know the budget, so at request time it is computed once
  per model, and a step costs one token. Budget features enter at every step: what is left, and what it must pay for.
- Infeasible levels get a logit of -inf: their probability is exactly 0, and so is their gradient.
- Value: log KL = log(sum_l s_l(x_l)) + w . phi(x) + c(x), for kept fractions x. s is the one-layer sensitivity curve
  (independent layers add up their KL); phi holds each layer's and each pair of layers' share in the damage, with
  weights w from a ridge regression in closed form; c is a small Transformer over all layers whose last weight starts
  at zero. It reads fractions, not levels: any widths can be judged. The M members saw different parts of the samples.
- Pre-norm without learnt norm weights, no dropout, learnt layer positions (a predictor belongs to one model).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy_model.encoding import KL_FLOOR_NATS, NUM_BUDGET_FEATURES, Encoding

KeyValues = tuple[Tensor, Tensor]
"""Keys and values of one block."""

NUM_CHOICE_FEATURES = 8


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of both towers."""

    num_layers: int
    num_levels: int
    num_features: int
    policy_width: int = 96
    policy_blocks: int = 3
    policy_heads: int = 4
    value_width: int = 32
    value_blocks: int = 2
    value_heads: int = 2
    num_members: int = 4
    num_draws: int = 16

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],))


# -- the policy -------------------------------------------------------------------------------------------------------


class Projection(nn.Module):
    """x W without bias, W stored [I, O]: for the few rows of a decoding step twice as fast as `nn.Linear`'s [O, I]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class PolicyBlock(nn.Module):
    """Pre-norm attention and a squared-ReLU FFN (Primer, arXiv 2109.08668) twice the model width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = Projection(width, 3 * width)
        self.attention_out = Projection(width, width)
        self.up = Projection(width, 2 * width)
        self.down = Projection(2 * width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, D / H] of x [B, T, D]."""
        B, T, D = x.shape
        qkv = self.query_key_value(_norm(x)).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual streams [..., D] after `attended` [..., D], its heads side by side."""
        x = x + self.attention_out(attended)
        out: Tensor = x + self.down(self.up(_norm(x)).relu().square())
        return out

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Residual streams [B, T, D] after attention and FFN; q [B, H, T, D / H], k and v of any length."""
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.finish(x, attended.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: Tensor, position: int) -> Tensor:
        """As `attend` for one token x [B, D], whose key and value go into `cache` [2, B * H, 2 L, D / H]."""
        B, D = x.shape
        head_width = D // self.num_heads
        qkv = self.query_key_value(_norm(x)).view(B, 3, self.num_heads, head_width).transpose(0, 1)
        q, new = qkv[0].reshape(-1, 1, head_width), qkv[1:].reshape(2, -1, head_width)
        cache[:, :, position] = new
        keys, values = cache[:, :, : position + 1]
        scores = torch.bmm(q, keys.transpose(1, 2)) * (1.0 / math.sqrt(head_width))
        attended = torch.bmm(scores.softmax(dim=-1), values)
        return self.finish(x, attended.view(B, D))


class Policy(nn.Module):
    """Level probabilities for one layer after another, given the budget left."""

    prefix_mask: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D, L = config.policy_width, config.num_layers
        self.read_layer = nn.Linear(config.num_features, D)
        self.read_budget = nn.Linear(NUM_BUDGET_FEATURES, D)
        self.layer_position = nn.Parameter(torch.randn(L, D) * 0.1)
        self.decision_position = nn.Parameter(torch.randn(L, D) * 0.1)
        self.previous_level = nn.Embedding(config.num_levels + 1, D)  # the last row: no decision yet
        self.blocks = nn.ModuleList(PolicyBlock(D, config.policy_heads) for _ in range(config.policy_blocks))
        self.head = nn.Linear(D, config.num_levels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # Row l: decision l sees all L layer tokens and decisions 0..l.
        mask = torch.cat([torch.ones(L, L), torch.ones(L, L).tril()], dim=1).bool()
        self.register_buffer("prefix_mask", mask, persistent=False)

    def encode_layers(self, features: Tensor) -> list[KeyValues]:
        """Keys and values [1, H, L, D / H] per block of the layer tokens; `features` is [L, F]."""
        x = (self.read_layer(features) + self.layer_position)[None]
        cache: list[KeyValues] = []
        for block in self._blocks():
            q, k, v = block.project(x)
            cache.append((k, v))
            x = block.attend(x, q, k, v)
        return cache

    def forward(self, features: Tensor, budget_features: Tensor, levels: Tensor, feasible: Tensor) -> Tensor:
        """Log-probabilities [B, L, K] of every decision, teacher-forced with 0-based `levels` [B, L].

        `features` [L, F]; `budget_features` [B, L, 6] and `feasible` bool [B, L, K] as `Encoding.trajectory_features`.
        """
        B = levels.shape[0]
        start = torch.full((B, 1), self.config.num_levels)
        previous = self.previous_level(torch.cat([start, levels[:, :-1]], dim=1))
        x = self.own_tokens(features) + self.read_budget(budget_features) + previous
        for block, (layer_k, layer_v) in zip(self._blocks(), self.encode_layers(features), strict=True):
            q, k, v = block.project(x)
            k = torch.cat([layer_k.expand(B, -1, -1, -1), k], dim=2)
            v = torch.cat([layer_v.expand(B, -1, -1, -1), v], dim=2)
            x = block.attend(x, q, k, v, self.prefix_mask)
        return self._log_probabilities(x, feasible)

    def start_cache(self, prefix: list[KeyValues], batch: int) -> list[Tensor]:
        """Per block, room for the keys and values [2, B * H, 2 L, D / H] of a decoding, the `prefix` filled in."""
        return [_with_room(torch.stack(pair), batch) for pair in prefix]

    def own_tokens(self, features: Tensor) -> Tensor:
        """The part of each decision token [L, D] that depends on neither budget nor decisions; `features` is [L, F]."""
        out: Tensor = self.read_layer(features) + self.decision_position
        return out

    def step(
        self,
        layer: int,
        own: Tensor,
        budget_features: Tensor,
        previous: Tensor,
        feasible: Tensor,
        cache: list[Tensor],
    ) -> Tensor:
        """Log-probabilities [B, K] of one decision; writes this step's keys and values into `cache`.

        `own` [D] is the layer's row of `own_tokens`, `budget_features` [B, 6], `previous` [B] the 0-based level chosen
        for layer - 1 (K at layer 0), `feasible` bool [B, K].
        """
        x = own + self.read_budget(budget_features) + self.previous_level(previous)
        for block, room in zip(self._blocks(), cache, strict=True):
            x = block.step(x, room, self.config.num_layers + layer)
        return self._log_probabilities(x, feasible)

    def _log_probabilities(self, x: Tensor, feasible: Tensor) -> Tensor:
        logits: Tensor = self.head(_norm(x))
        return logits.masked_fill(~feasible, -math.inf).log_softmax(dim=-1)

    def _blocks(self) -> list[PolicyBlock]:
        return [block for block in self.blocks if isinstance(block, PolicyBlock)]


def _with_room(prefix: Tensor, batch: int) -> Tensor:
    """[2, B * H, 2 L, D / H] with `prefix` [2, 1, H, L, D / H] in its first half, for every row of the batch."""
    _, _, H, L, width = prefix.shape
    room = torch.empty(2, batch, H, 2 * L, width)
    room[:, :, :, :L] = prefix
    return room.view(2, batch * H, 2 * L, width)


def policy_loss(log_probabilities: Tensor, levels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over [B] of the negative log-likelihood per decision of 0-based `levels` [B, L]."""
    chosen = log_probabilities.gather(-1, levels[..., None]).squeeze(-1)
    return -(chosen.mean(dim=1) * weights).sum() / weights.sum()


# -- the values -------------------------------------------------------------------------------------------------------


class MemberLinear(nn.Module):
    """M independent linear layers in one batched product: [M, N, I] -> [M, N, O]."""

    def __init__(self, num_members: int, inputs: int, outputs: int, *, zero: bool = False) -> None:
        super().__init__()
        bound = 0.0 if zero else 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(num_members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class ValueBlock(nn.Module):
    """As `PolicyBlock`, unmasked, for M members at once."""

    def __init__(self, num_members: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = MemberLinear(num_members, width, 3 * width)
        self.attention_out = MemberLinear(num_members, width, width)
        self.up = MemberLinear(num_members, width, 2 * width)
        self.down = MemberLinear(num_members, 2 * width, width)

    def forward(self, x: Tensor, num_layers: int) -> Tensor:
        """Residual streams [M, B * L, D]."""
        M, N, D = x.shape
        B = N // num_layers
        qkv = self.query_key_value(_norm(x)).view(M * B, num_layers, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(M, N, D)
        x = x + self.attention_out(attended)
        out: Tensor = x + self.down(functional.gelu(self.up(_norm(x))))
        return out


class Values(nn.Module):
    """M predictions of the log KL of complete configurations, from kept fractions."""

    knots: Tensor
    features: Tensor
    log_sensitivity: Tensor
    pairs: Tensor

    def __init__(self, config: ModelConfig, encoding: Encoding) -> None:
        super().__init__()
        self.config = config
        M, L, D = config.num_members, config.num_layers, config.value_width
        for name, constant in (
            ("knots", encoding.knots.contiguous()),
            ("features", encoding.features),
            ("log_sensitivity", encoding.log_sensitivity),
            ("pairs", torch.triu_indices(L, L, offset=1)),
        ):
            self.register_buffer(name, constant, persistent=False)
        # Fitted in closed form, not by gradient: see `value_training.fit_readout`.
        self.readout = nn.Parameter(torch.zeros(M, self.num_terms), requires_grad=False)
        self.spread = nn.Parameter(torch.zeros(config.num_draws, self.num_terms), requires_grad=False)
        self.position = nn.Parameter(torch.randn(M, L, D) * 0.1)
        self.read_layer = MemberLinear(M, config.num_features, D)
        self.read_choice = MemberLinear(M, NUM_CHOICE_FEATURES, D)
        self.blocks = nn.ModuleList(ValueBlock(M, D, config.value_heads) for _ in range(config.value_blocks))
        self.head = MemberLinear(M, D, 1, zero=True)

    @property
    def num_terms(self) -> int:
        """J: the length of phi."""
        L = self.config.num_layers
        return 6 + 4 * L + 2 * (L - 1) + L * (L - 1)

    def forward(self, fractions: Tensor) -> Tensor:
        """Log KL in nats [M, B] of kept fractions [B, L]."""
        share = self.own_kl(fractions)
        return self._regression(fractions, share) + self.fade(fractions) * self._correction(fractions, share)

    def screen(self, fractions: Tensor, pessimism: float) -> Tensor:
        """Mean log KL [B] over the members without the Transformer, plus `pessimism` standard deviations.

        A hundred times cheaper than `pessimistic`: to choose what is worth judging.
        """
        share = self.own_kl(fractions)
        terms = self.terms(fractions, share)
        mean: Tensor = self.base(share) + terms @ self.readout.mean(dim=0)
        return mean + pessimism * self._spread(terms)

    def pessimistic(self, fractions: Tensor, pessimism: float) -> Tensor:
        """As `screen` [B], with the Transformer."""
        share = self.own_kl(fractions)
        terms = self.terms(fractions, share)
        regression = self.base(share) + self.readout @ terms.t()
        mean = (regression + self.fade(fractions) * self._correction(fractions, share)).mean(dim=0)
        return mean + pessimism * self._spread(terms)

    def deviation(self, fractions: Tensor) -> Tensor:
        """Posterior standard deviation [B] of the regression's log KL."""
        return self._spread(self.terms(fractions, self.own_kl(fractions)))

    def _spread(self, terms: Tensor) -> Tensor:
        return (terms @ self.spread.t()).square().mean(dim=1).sqrt()

    def correction(self, fractions: Tensor) -> Tensor:
        """What the Transformer adds to `screen`, [M, B]."""
        return self.fade(fractions) * self._correction(fractions, self.own_kl(fractions))

    def own_kl(self, fractions: Tensor) -> Tensor:
        """The KL in nats of pruning each layer alone, [B, L].

        Log-linear in the kept fraction between levels, linear from the last level below dense to 0; below level 1
        the slope is kept.
        """
        K = self.knots.shape[1]
        x = fractions.t().contiguous()  # [L, B]
        segment = (torch.searchsorted(self.knots, x) - 1).clamp(0, K - 2)
        left, right = self.knots.gather(1, segment), self.knots.gather(1, segment + 1)
        weight = (x - left) / (right - left)  # below 0 under level 1
        low = self.log_sensitivity.gather(1, segment)
        high = self.log_sensitivity.gather(1, (segment + 1).clamp(max=K - 2))
        inside = (low + (high - low) * weight).clamp(max=12.0).exp()
        return torch.where(segment == K - 2, low.exp() * (1.0 - weight), inside).t()

    @staticmethod
    def base(share: Tensor) -> Tensor:
        """[B] log KL if the layers' own KL [B, L] simply added up."""
        return (share.sum(dim=-1) + KL_FLOOR_NATS).log()

    def fade(self, fractions: Tensor) -> Tensor:
        """[B] 1, and less only within one level of one layer from the dense model, where nothing is lost."""
        K = self.knots.shape[1]
        return ((1.0 - fractions).sum(dim=-1) * K).clamp(max=1.0)

    def terms(self, fractions: Tensor, share: Tensor) -> Tensor:
        """phi [B, J]: what one layer, two neighbours or any two layers contribute beyond adding up.

        In removed fractions p and in parts r of the summed own KL. The factors are prior scales: the ridge penalty
        is the same for all weights, and effects that many layers share are the likelier ones.
        """
        p = 1.0 - fractions
        total = share.sum(dim=-1, keepdim=True) + KL_FLOOR_NATS
        r = share / total
        q = r.sqrt()
        mean, log_total = p.mean(dim=-1, keepdim=True), 0.2 * total.log()
        i, j = self.pairs[0], self.pairs[1]
        pair_p, pair_q = p[:, i] * p[:, j], q[:, i] * q[:, j]
        whole = [torch.ones_like(mean), mean, mean.square(), log_total, log_total.square(), log_total * mean]
        layerwise = [0.3 * p, 0.3 * p.square(), 0.3 * r, 0.3 * q]
        neighbours = [0.5 * q[:, :-1] * q[:, 1:], 0.5 * p[:, :-1] * p[:, 1:]]
        return self.fade(fractions)[:, None] * torch.cat(
            [*whole, *layerwise, *neighbours, 0.3 * pair_p, 0.5 * pair_p * pair_q], dim=1
        )

    def _regression(self, fractions: Tensor, share: Tensor) -> Tensor:
        return self.base(share) + self.readout @ self.terms(fractions, share).t()

    def _correction(self, fractions: Tensor, share: Tensor) -> Tensor:
        M, B, L = self.config.num_members, *fractions.shape
        choice = self._choice_features(fractions, share).flatten(0, 1).expand(M, -1, -1)
        own = self.read_layer(self.features.expand(M, -1, -1)) + self.position
        x = (own[:, None] + self.read_choice(choice).view(M, B, L, -1)).flatten(1, 2)
        for block in self.blocks:
            x = block(x, L)
        out: Tensor = self.head(_norm(x)).view(M, B, L).mean(dim=-1)
        return out

    def _choice_features(self, fractions: Tensor, share: Tensor) -> Tensor:
        """[B, L, 8]: removed fraction of this layer and its neighbours, own log KL, its part, and two totals."""
        removed = 1.0 - fractions
        before, after = functional.pad(removed, (1, -1)), functional.pad(removed, (-1, 1))
        mean_removed = removed.mean(dim=-1, keepdim=True).expand_as(removed)
        log_share = (share + KL_FLOOR_NATS).log()
        total = self.base(share)[:, None].expand_as(share)
        relative = log_share - total
        scaled = [0.2 * log_share + 1.0, 0.2 * relative + 1.0, relative.exp(), 0.2 * total + 1.0]
        return torch.stack([removed, before, after, mean_removed, *scaled], dim=-1)


def value_loss(predicted: Tensor, log_kl: Tensor, weights: Tensor) -> Tensor:
    """Sum over members of the weighted Huber loss of log KL; all arguments are [M, B]."""
    error = functional.huber_loss(predicted, log_kl, reduction="none", delta=0.5)
    return ((error * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)).sum()


class PlanModel(nn.Module):
    """Both towers, as they are trained, stored and served together."""

    def __init__(self, config: ModelConfig, encoding: Encoding) -> None:
        super().__init__()
        self.config = config
        self.policy = Policy(config)
        self.values = Values(config, encoding)
