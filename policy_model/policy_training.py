"""Training the policy: imitate the samples near the frontier and the experts, round after round.

Letters: E examples, B batch, L decoder layers.
"""

from dataclasses import dataclass

import numpy as np
import torch

from policy_model.decoder import PolicyDecoder, gumbel_noise
from policy_model.experts import (
    PARAMETER_SHARE,
    find_expert,
    pricings,
    random_slacks,
    starting_points,
)
from policy_model.local_search import level_values
from policy_model.policy import Policy, policy_loss
from policy_model.schedule import scheduled
from pruning.arrays import FloatArray, IntArray
from values.dataset import TrainingData
from values.encoding import Encoding
from values.values import Values

IMITATION_TEMPERATURE = 0.05
"""Log KL above the frontier at which a sample's imitation weight has fallen to 1/e."""

SAMPLE_SHARE = 0.25
"""Part of the batch's weight that comes from measured samples; the rest comes from experts."""

PROPOSALS = 3
"""Configurations that the policy proposes for every budget of a round."""

HELD_OUT_EVERY = 8
"""One expert in so many is not imitated: it tells when to stop."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Levels [E, L] that are good for slacks from `lowest` to `highest` [E] of the cost `pricing` [E], with weights."""

    levels: IntArray
    pricing: IntArray
    lowest: IntArray
    highest: IntArray
    weights: FloatArray


class PolicyTraining:
    """State: the policy, its optimizer, and the experts found so far. Every step depends on it, `step` and the seed."""

    def __init__(
        self, policy: Policy, values: Values, encoding: Encoding, data: TrainingData, *, seed: int, steps: int
    ) -> None:
        self.policy, self.encoding, self.data = policy, encoding, data
        self.seed, self.steps = seed, steps
        self.pricings = pricings(encoding, seed)
        self.features = torch.from_numpy(encoding.features).float()
        self._table = level_values(encoding, values)
        self.expert_levels = np.empty((0, encoding.space.num_decisions), dtype=np.int64)
        self.expert_slacks = np.empty(0, dtype=np.int64)
        self.expert_pricings = np.empty(0, dtype=np.int64)
        decayed = [p for name, p in policy.named_parameters() if p.ndim == 2 and "position" not in name]
        other = [p for name, p in policy.named_parameters() if not (p.ndim == 2 and "position" not in name)]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}], lr=0.0
        )

    def find_experts(self, round_index: int, count: int) -> None:
        """Add the best configurations found for `count` new random budgets."""
        of_parameters = round(count * PARAMETER_SHARE)
        counts = [of_parameters, *_divide(count - of_parameters, len(self.pricings) - 1)]
        levels, slacks, kinds = [self.expert_levels], [self.expert_slacks], [self.expert_pricings]
        for kind, (pricing, number) in enumerate(zip(self.pricings, counts, strict=True)):
            if number == 0:
                continue
            wanted = random_slacks(self.encoding, self.data, pricing, number, [self.seed, 2, round_index, kind])
            proposals = self._proposals(kind, wanted, round_index)
            found = [
                find_expert(
                    self._table,
                    pricing,
                    [*starting_points(self.data, pricing, int(slack)), *proposed],
                    int(slack),
                )
                for slack, proposed in zip(wanted, proposals, strict=True)
            ]
            levels.append(np.stack(found))
            slacks.append(wanted)
            kinds.append(np.full(number, kind))
        self.expert_levels, self.expert_slacks = np.concatenate(levels), np.concatenate(slacks)
        self.expert_pricings = np.concatenate(kinds)

    def _proposals(self, kind: int, slacks: IntArray, round_index: int) -> list[list[IntArray]]:
        """For each of `slacks` [R] what the policy decodes, and the expert of the next smaller slack; none at first."""
        if round_index == 0:
            return [[] for _ in slacks]
        pricing, shape = self.pricings[kind], self.encoding.widths.shape
        weights = {name: p.detach().numpy() for name, p in self.policy.state_dict().items()}
        decoder = PolicyDecoder(weights, self.policy.config.num_heads, self.encoding.features)
        repeated = np.repeat(slacks, PROPOSALS)
        noise = gumbel_noise(shape[0], len(repeated), shape[1], self.seed + round_index)
        decoded = decoder.decode(pricing.costs, repeated[:, None], noise)
        proposals = [list(rows) for rows in decoded.reshape(len(slacks), PROPOSALS, -1)]
        # Whoever starts from a held-out expert would show it to the policy.
        own = (self.expert_pricings == kind) & ~self._held_out()
        smaller, known = self.expert_slacks[own], self.expert_levels[own]
        for slack, proposed in zip(slacks, proposals, strict=True):
            below = np.flatnonzero(smaller <= slack)
            if len(below):
                proposed.append(pricing.fit(known[below[smaller[below].argmax()]], int(slack)))
        return proposals

    def examples(self) -> Examples:
        """Samples worth imitating, with `SAMPLE_SHARE` of the weight, and all experts that are not held out."""
        kept = ~self._held_out()
        weights = self.data.imitation_weights(IMITATION_TEMPERATURE) * self.data.searched
        worth = weights > 0.05
        levels = np.concatenate([self.data.levels[worth], self.expert_levels[kept]])
        kinds = np.concatenate([np.zeros(int(worth.sum()), dtype=np.int64), self.expert_pricings[kept]])
        spent = np.empty(len(levels), dtype=np.int64)
        step = np.empty(len(levels), dtype=np.int64)
        for kind, pricing in enumerate(self.pricings):
            own = kinds == kind
            spent[own] = pricing.costs.spent(levels[own])[:, 0]
            differences = np.diff(pricing.costs.excess[0], axis=1)
            step[own] = max(int(differences[differences > 0].min()), 1)
        count = int(worth.sum())
        asked = np.concatenate([spent[:count], self.expert_slacks[kept]])
        experts = np.full(int(kept.sum()), 1.0 / max(int(kept.sum()), 1))
        if count:
            own_weights = weights[worth] / weights[worth].sum() * SAMPLE_SHARE
            experts = experts * (1.0 - SAMPLE_SHARE)
        else:
            own_weights = weights[worth]
        highest = np.maximum(spent + step - 1, asked)
        return Examples(levels, kinds, spent, highest, np.concatenate([own_weights, experts]))

    def step(self, step: int, batch_size: int, learning_rate: float, examples: Examples) -> float:
        """One update; returns the negative log-likelihood per decision in nats."""
        rng = np.random.default_rng([self.seed, 3, step])
        p = examples.weights / examples.weights.sum()
        index = rng.choice(len(p), batch_size, p=p)
        room = (examples.highest - examples.lowest)[index]
        slack = examples.lowest[index] + (rng.random(batch_size) * (room + 1)).astype(np.int64)
        loss = self._loss(examples.levels[index], examples.pricing[index], slack)
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
        with torch.no_grad():
            return self._loss(
                self.expert_levels[held_out], self.expert_pricings[held_out], self.expert_slacks[held_out]
            ).item()

    def _loss(self, levels: IntArray, kinds: IntArray, slacks: IntArray) -> torch.Tensor:
        """Of examples [B], put in the order of their pricing."""
        features, masks, ordered = [], [], []
        for kind in np.unique(kinds):
            own = kinds == kind
            found, feasible = self.pricings[kind].costs.trajectory(levels[own], slacks[own, None])
            features.append(found)
            masks.append(feasible)
            ordered.append(levels[own])
        chosen = torch.from_numpy(np.concatenate(ordered))
        feasible_levels = torch.from_numpy(np.concatenate(masks))
        # Under stairs a step further is free: what an expert left there is no mistake of its own.
        feasible_levels.scatter_(2, chosen[..., None], True)
        log_p = self.policy(self.features, torch.from_numpy(np.concatenate(features)).float(), chosen, feasible_levels)
        return policy_loss(log_p, chosen, torch.ones(len(chosen)))

    def _held_out(self) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        held_out: np.ndarray[tuple[int], np.dtype[np.bool_]] = (
            np.arange(len(self.expert_levels)) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
        )
        return held_out


def _divide(count: int, parts: int) -> list[int]:
    """`count` in `parts` that differ by one at most."""
    return [count // parts + (index < count % parts) for index in range(parts)]
