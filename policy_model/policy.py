"""The policy as it is trained: a Transformer that makes one decision after another.

Letters: B batch, N decisions, K options, D model width, H heads, O option width, F features of a decision, S of an
option.

A prefix Transformer: N prefix tokens, one per decision, see each other; N decision tokens see the whole prefix and the
decisions before them. The prefix does not know the budget, so at request time it is computed once per model, and a step
costs one token. What was asked and what is left enters at every decision, and so does the option that was chosen
before. Options are scored one by one, by their own features and the decision's state, so the same weights choose among
any number of them, in any number of decisions, under any number of limits. Infeasible options get a logit of -inf:
their probability is exactly 0, and so is their gradient. Pre-norm without learnt norm weights, no dropout, no learnt
positions. Requests are decoded by `policy_model.decoder`, with the same weights and without torch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy_model.model_features import NUM_DECISION_FEATURES, NUM_OPTION_FEATURES
from policy_model.policy_config import PolicyConfig
from policy_model.problem_features import NUM_PRICE_FEATURES, NUM_STEP_FEATURES, NUM_TAKEN_FEATURES

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
    """Probabilities of the options of one decision after another, given what is left."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        D, O = config.width, config.option_width  # noqa: E741
        option = NUM_OPTION_FEATURES + NUM_PRICE_FEATURES
        self.read_decision = nn.Linear(NUM_DECISION_FEATURES, D)
        self.read_step = Projection(NUM_STEP_FEATURES, D)
        self.read_previous = nn.Linear(option, D)
        self.decides = nn.Parameter(torch.randn(D) * 0.1)
        """Tells decision tokens from prefix tokens."""
        self.blocks = nn.ModuleList(PolicyBlock(D, config.num_heads) for _ in range(config.num_blocks))
        self.read_option = nn.Linear(option, O)
        self.read_taken = Projection(NUM_TAKEN_FEATURES, O)
        self.read_state = Projection(D, O)
        self.score = nn.Parameter(torch.zeros(O))

    def encode_decisions(self, decisions: Tensor) -> list[KeyValues]:
        """Keys and values [1, H, N, D / H] per block of the prefix tokens; `decisions` is [N, F]."""
        x = self.read_decision(decisions)[None]
        cache: list[KeyValues] = []
        for block in self._blocks():
            q, k, v = block.project(x)
            cache.append((k, v))
            x = block.attend(x, q, k, v)
        return cache

    def forward(
        self, decisions: Tensor, options: Tensor, steps: Tensor, taken: Tensor, feasible: Tensor, choices: Tensor
    ) -> Tensor:
        """Log-probabilities [B, N, K] of every decision, teacher-forced with `choices` [B, N].

        `decisions` [N, F] as `ModelFeatures`, `options` [B, N, K, S] as `ProblemFeatures`, and `steps`, `taken` and
        `feasible` as `Trajectory` has them.
        """
        B, N = choices.shape
        index = choices[:, :-1, None, None].expand(-1, -1, 1, options.shape[3])
        previous = self.read_previous(options[:, :-1].gather(2, index)[:, :, 0])
        x = self.read_decision(decisions) + self.decides + self.read_step(steps)
        x = x + functional.pad(previous, (0, 0, 1, 0))
        # Row n: decision n sees all prefix tokens and decisions 0..n.
        mask = torch.cat([torch.ones(N, N), torch.ones(N, N).tril()], dim=1).bool()
        for block, (prefix_k, prefix_v) in zip(self._blocks(), self.encode_decisions(decisions), strict=True):
            q, k, v = block.project(x)
            k = torch.cat([prefix_k.expand(B, -1, -1, -1), k], dim=2)
            v = torch.cat([prefix_v.expand(B, -1, -1, -1), v], dim=2)
            x = block.attend(x, q, k, v, mask)
        hidden = self.read_option(options) + self.read_taken(taken) + self.read_state(_norm(x))[:, :, None]
        logits: Tensor = hidden.relu().square() @ self.score
        return logits.masked_fill(~feasible, -math.inf).log_softmax(dim=-1)

    def _blocks(self) -> list[PolicyBlock]:
        return [block for block in self.blocks if isinstance(block, PolicyBlock)]


def policy_loss(log_probabilities: Tensor, choices: Tensor) -> Tensor:
    """Mean negative log-likelihood per decision, of `choices` [B, N] under [B, N, K]."""
    return -log_probabilities.gather(-1, choices[..., None]).mean()
