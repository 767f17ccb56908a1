"""From a budget to levels: the policy decodes a batch of candidates, the values choose among them.

Letters: B candidates, L decoder layers, K levels, M ensemble members.
"""

import math

import torch
from torch import Tensor

from policy_model.encoding import Encoding
from policy_model.model import KeyValues, Policy, Values

NUM_CANDIDATES = 12
NUM_FINALISTS = 4
NUM_POLISHING_ROUNDS = 2
NUM_EXCHANGES = 24

SMALLEST_GAIN = 1e-5
"""In log KL: less is float32 rounding, and could go on for ever."""

PESSIMISM = 3.0
"""Posterior standard deviations added to the mean: what is chosen for its low prediction is often chosen for its error
(the optimiser's curse). On synthetic landscapes with strong interactions 0 made plans 3.3% worse than a search at the
target, 2 and 4 made them 1.5% worse, the worst of 16 15%, 13% and 10%; with weak interactions all are equal."""


def gumbel_noise(num_layers: int, batch: int, num_levels: int, seed: int) -> Tensor:
    """[L, B, K] noise for `decode`, zero for candidate 0, which is therefore the greedy one."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_layers, batch, num_levels, generator=generator).clamp(1e-6, 1.0 - 1e-6)
    noise = -(-uniform.log()).log()
    noise[:, 0] = 0.0
    return noise


def decode(
    policy: Policy, encoding: Encoding, prefix: list[KeyValues], budget: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """0-based levels [B, L] within `budget` [B] int64 parameters, and their log-probabilities [B, L].

    Each level is the argmax of log-probability plus `noise` [L, B, K]: Gumbel noise makes it a sample, none the most
    likely level. `prefix` is `policy.encode_layers(encoding.features)`.
    """
    B, L = len(budget), encoding.grid.num_layers
    cache = policy.start_cache(prefix, B)
    own = policy.own_tokens(encoding.features)
    asked = encoding.asked_features(budget)
    remaining = budget.clone()
    previous = torch.full((B,), encoding.grid.num_levels)
    levels = torch.empty(B, L, dtype=torch.int64)
    chosen = torch.empty(B, L)
    for layer in range(L):
        features = encoding.budget_features(layer, remaining, asked)
        mask = encoding.feasible(layer, remaining)
        log_p = policy.step(layer, own[layer], features, previous, mask, cache)
        previous = (log_p + noise[layer]).argmax(dim=1)
        levels[:, layer] = previous
        chosen[:, layer] = log_p.gather(1, previous[:, None])[:, 0]
        remaining = remaining - encoding.level_costs[layer][previous]
    return levels, chosen


def best_levels(encoding: Encoding, values: Values, candidates: Tensor, budget: int) -> Tensor:
    """The levels [L] of least pessimistic value among `candidates` [B, L] and what exchanges make of the best of them.

    The regression part of the values chooses the finalists and polishes the first; all of the values choose the winner.
    """
    candidates = torch.unique(candidates, dim=0)
    scores = values.screen(encoding.fractions_of_levels(candidates), PESSIMISM)
    kept = scores.topk(min(NUM_FINALISTS, len(scores)), largest=False)
    finalists = candidates[kept.indices]
    polished = polish(encoding, values, finalists[0], float(kept.values[0]), budget)
    judged: Tensor = torch.unique(torch.cat([finalists, polished[None]]), dim=0)
    winner = int(values.pessimistic(encoding.fractions_of_levels(judged), PESSIMISM).argmin())
    return judged[winner]


def polish(encoding: Encoding, values: Values, levels: Tensor, score: float, budget: int) -> Tensor:
    """0-based `levels` [L] of screened `score` after a few exchanges: one layer a level up, another one down.

    Of the L (L - 1) exchanges only those are screened whose two halves, each alone, promise most.
    """
    L = len(levels)
    eye = torch.eye(L, dtype=torch.int64)
    for _ in range(NUM_POLISHING_ROUNDS):
        singles = torch.cat([levels + eye, levels - eye]).clamp(0, encoding.grid.num_levels - 1)
        change = values.screen(encoding.fractions_of_levels(singles), PESSIMISM) - score
        cost = encoding.costs_of_levels(singles).sum(dim=1)
        own_cost = encoding.costs_of_levels(levels).sum()
        raised, lowered = cost[:L] - own_cost, own_cost - cost[L:]
        left = budget - own_cost - raised[:, None] + lowered
        valid = (left >= 0) & (left < encoding.grid.largest_step) & (raised > 0)[:, None] & (lowered > 0) & (eye == 0)
        promise = (change[:L, None] + change[L:]).masked_fill(~valid, math.inf).flatten()
        order = promise.topk(min(NUM_EXCHANGES, int(valid.sum())), largest=False).indices
        if len(order) == 0:
            break
        exchanged = levels + eye[order // L] - eye[order % L]
        best, index = values.screen(encoding.fractions_of_levels(exchanged), PESSIMISM).min(dim=0)
        if not float(best) < score - SMALLEST_GAIN:
            break
        levels, score = exchanged[index], float(best)
    return levels


def marginal_worth(encoding: Encoding, values: Values, widths: Tensor, round_to: int) -> list[float]:
    """[L] how much log KL falls per parameter when a layer of `widths` [L] grows by one rounding step."""
    grown = torch.minimum(widths + round_to, encoding.dense_widths)
    batch = torch.cat([widths[None], torch.where(torch.eye(len(widths), dtype=torch.bool), grown, widths)])
    value = values.screen(encoding.kept_fractions(batch), 0.0)
    per_channel = encoding.level_costs[:, -1] / encoding.dense_widths
    gain = (value[0] - value[1:]) / ((grown - widths) * per_channel).clamp(min=1.0)
    worth: list[float] = gain.tolist()
    return [w if math.isfinite(w) else 0.0 for w in worth]
