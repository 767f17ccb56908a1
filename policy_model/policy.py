"""The policy as it is trained: a Transformer that chooses one layer's level after another.

Letters: B batch, L decoder layers, K levels, D model width, H heads, F static features a layer, S step features.

A prefix Transformer: L prefix tokens, one per decoder layer, see each other; L decision tokens see the whole prefix and
the decisions before them. The prefix does not know the budget, so at request time it is computed once per model, and a
step costs one token. Step features enter at every decision: what was asked, what is left, what actions cost. Infeasible
levels get a logit of -inf: their probability is exactly 0, and so is their gradient. Pre-norm without learnt norm
weights, no dropout, learnt layer positions (a predictor belongs to one model). Requests are decoded by
`policy_model.decoder`, with the same weights and without torch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy_model.costs import num_step_features
from policy_model.policy_config import PolicyConfig

KeyValues = tuple[Tensor, Tensor]
"""Keys and values of one block."""


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],))


class Projection(nn.Module):
    """x W without bias, W stored [I, O], as numpy multiplies it."""

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

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Residual streams [B, T, D] after attention and FFN; q [B, H, T, D / H], k and v of any length."""
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(self.up(_norm(x)).relu().square())
        return out


class Policy(nn.Module):
    """Level probabilities for one layer after another, given what is left."""

    prefix_mask: Tensor

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        D, L = config.width, config.num_layers
        self.read_layer = nn.Linear(config.num_features, D)
        self.read_step = nn.Linear(num_step_features(config.num_levels), D)
        self.layer_position = nn.Parameter(torch.randn(L, D) * 0.1)
        self.decision_position = nn.Parameter(torch.randn(L, D) * 0.1)
        self.previous_level = nn.Embedding(config.num_levels + 1, D)  # the last row: no decision yet
        self.blocks = nn.ModuleList(PolicyBlock(D, config.num_heads) for _ in range(config.num_blocks))
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

    def forward(self, features: Tensor, step_features: Tensor, levels: Tensor, feasible: Tensor) -> Tensor:
        """Log-probabilities [B, L, K] of every decision, teacher-forced with `levels` [B, L].

        `features` [L, F]; `step_features` [B, L, S] and `feasible` bool [B, L, K] as `DecisionCosts.trajectory`.
        """
        B = levels.shape[0]
        start = torch.full((B, 1), self.config.num_levels)
        previous = self.previous_level(torch.cat([start, levels[:, :-1]], dim=1))
        x = self.read_layer(features) + self.decision_position + self.read_step(step_features) + previous
        for block, (layer_k, layer_v) in zip(self._blocks(), self.encode_layers(features), strict=True):
            q, k, v = block.project(x)
            k = torch.cat([layer_k.expand(B, -1, -1, -1), k], dim=2)
            v = torch.cat([layer_v.expand(B, -1, -1, -1), v], dim=2)
            x = block.attend(x, q, k, v, self.prefix_mask)
        logits: Tensor = self.head(_norm(x))
        return logits.masked_fill(~feasible, -math.inf).log_softmax(dim=-1)

    def _blocks(self) -> list[PolicyBlock]:
        return [block for block in self.blocks if isinstance(block, PolicyBlock)]


def policy_loss(log_probabilities: Tensor, levels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over [B] of the negative log-likelihood per decision of `levels` [B, L]."""
    chosen = log_probabilities.gather(-1, levels[..., None]).squeeze(-1)
    return -(chosen.mean(dim=1) * weights).sum() / weights.sum()
