"""Training the policy: imitate the samples near the frontier and the experts, round after round.

Letters: E examples, B batch, L decoder layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from policy_model.dataset import TrainingData
from policy_model.decoding import decode, gumbel_noise
from policy_model.encoding import Encoding
from policy_model.experts import Moves, improve, random_budgets, starting_points
from policy_model.model import Policy, Values, policy_loss
from policy_model.schedule import scheduled

IMITATION_TEMPERATURE = 0.05
"""Log KL above the frontier at which a sample's imitation weight has fallen to 1/e."""

SAMPLE_SHARE = 0.25
"""Part of the batch's weight that comes from measured samples; the rest comes from experts."""

PROPOSALS = 3
"""Configurations that the policy proposes for every budget of a round."""


HELD_OUT_EVERY = 8
"""One expert in so many is not imitated: it tells when to stop."""


@dataclass(frozen=True)
class Examples:
    """Levels [E, L] that are good for budgets from `lowest` to `highest` [E] int64 parameters, with weights [E]."""

    levels: Tensor
    lowest: Tensor
    highest: Tensor
    weights: Tensor


class PolicyTraining:
    """State: the policy, its optimizer, and the experts found so far. Every step depends on it, `step` and the seed."""

    def __init__(
        self, policy: Policy, values: Values, encoding: Encoding, data: TrainingData, *, seed: int, steps: int
    ) -> None:
        self.policy, self.values, self.encoding, self.data = policy, values, encoding, data
        self.seed, self.steps = seed, steps
        self.moves = Moves.of(encoding)
        L = encoding.grid.num_layers
        self.expert_levels = torch.empty(0, L, dtype=torch.int64)
        self.expert_budgets = torch.empty(0, dtype=torch.int64)
        decayed = [p for name, p in policy.named_parameters() if p.ndim == 2 and "position" not in name]
        other = [p for name, p in policy.named_parameters() if not (p.ndim == 2 and "position" not in name)]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}], lr=0.0
        )

    def find_experts(self, round_index: int, count: int) -> None:
        """Add the best configurations found for `count` new random budgets."""
        generator = torch.Generator().manual_seed(self.seed * 7_919 + round_index)
        budgets = random_budgets(self.encoding, self.data, count, generator)
        with torch.no_grad():
            starts = starting_points(self.encoding, self.data, budgets)
            if round_index > 0:
                starts = torch.cat([starts, self._proposals(budgets, round_index), self._nearest(budgets)], dim=1)
            found = improve(self.encoding, self.values, self.moves, starts, budgets, generator)
        self.expert_levels = torch.cat([self.expert_levels, found])
        self.expert_budgets = torch.cat([self.expert_budgets, budgets])

    def _proposals(self, budgets: Tensor, round_index: int) -> Tensor:
        """[R, PROPOSALS, L] decoded by the policy."""
        repeated = budgets.repeat_interleave(PROPOSALS)
        prefix = self.policy.encode_layers(self.encoding.features)
        noise = gumbel_noise(
            self.encoding.grid.num_layers, len(repeated), self.encoding.grid.num_levels, self.seed + round_index
        )
        levels, _ = decode(self.policy, self.encoding, prefix, repeated, noise)
        return levels.view(len(budgets), PROPOSALS, -1)

    def _nearest(self, budgets: Tensor) -> Tensor:
        """[R, 1, L] the expert for the nearest budget not above each of `budgets`, which it therefore fits.

        What an older expert leaves over is more than a step may leave, but descent only moves to what does not.
        """
        order = self.expert_budgets.argsort()
        position = (torch.searchsorted(self.expert_budgets[order], budgets, right=True) - 1).clamp(min=0)
        levels = self.expert_levels[order][position]
        fits = self.encoding.costs_of_levels(levels).sum(dim=1) <= budgets
        slack = budgets - self.encoding.costs_of_levels(levels).sum(dim=1)
        usable = fits & (slack < self.encoding.grid.largest_step)
        fallback = starting_points(self.encoding, self.data, budgets)[:, 0]
        return torch.where(usable[:, None], levels, fallback)[:, None]

    def examples(self) -> Examples:
        """Samples worth imitating, with `SAMPLE_SHARE` of the weight, and all experts that are not held out."""
        held_out = self._held_out()
        expert_levels, expert_budgets = self.expert_levels[~held_out], self.expert_budgets[~held_out]
        weights = self.data.imitation_weights(IMITATION_TEMPERATURE) * self.data.searched
        keep = weights > 0.05
        levels = torch.cat([self.data.levels[keep], expert_levels])
        cost = self.encoding.costs_of_levels(levels).sum(dim=1)
        smallest_step = int((self.encoding.level_costs[:, 1:] - self.encoding.level_costs[:, :-1]).min())
        experts = torch.ones(len(expert_levels))
        if keep.any():
            own = weights[keep] / weights[keep].sum() * SAMPLE_SHARE
            experts = experts / max(len(experts), 1) * (1.0 - SAMPLE_SHARE)
        else:
            own = weights[keep]
        highest = torch.maximum(cost + smallest_step - 1, torch.cat([cost[: len(own)], expert_budgets]))
        return Examples(levels, cost, highest, torch.cat([own, experts]))

    def step(self, step: int, batch_size: int, learning_rate: float, examples: Examples) -> float:
        """One update; returns the negative log-likelihood per decision in nats."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + 500_000 + step)
        index = torch.multinomial(examples.weights, batch_size, replacement=True, generator=generator)
        room = (examples.highest - examples.lowest)[index].double()
        budget = examples.lowest[index] + (torch.rand(batch_size, generator=generator).double() * room).long()
        levels = examples.levels[index]
        features, feasible = self.encoding.trajectory_features(levels, budget)
        log_p = self.policy(self.encoding.features, features, levels, feasible)
        loss = policy_loss(log_p, levels, torch.ones(batch_size))
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled(learning_rate, step, self.steps)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def error(self) -> float:
        """Negative log-likelihood per decision, in nats, of the held-out experts."""
        held_out = self._held_out()
        levels, budget = self.expert_levels[held_out], self.expert_budgets[held_out]
        with torch.no_grad():
            features, feasible = self.encoding.trajectory_features(levels, budget)
            log_p = self.policy(self.encoding.features, features, levels, feasible)
            return policy_loss(log_p, levels, torch.ones(len(levels))).item()

    def _held_out(self) -> Tensor:
        return torch.arange(len(self.expert_levels)) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
