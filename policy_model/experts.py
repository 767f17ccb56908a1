"""Expert iteration: good configurations for budgets nobody searched, found on the values, for the policy to imitate.

As in expert iteration (Anthony et al., arXiv 1705.08439), a slow expert (descent over exchanges of levels on the
frozen values) improves what the fast apprentice (the policy) proposes, and the apprentice imitates the result.
Letters: R budgets, P starting points a budget, A moves, L decoder layers, K levels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policy_model.dataset import TrainingData
from policy_model.decoding import PESSIMISM, SMALLEST_GAIN
from policy_model.encoding import Encoding
from policy_model.model import Values
from pruning.allocators.additive_dp import cost_to_go, fill_up
from pruning.arrays import FloatArray

MAX_SCREENED = 16_384
"""Configurations screened in one round of descent."""

MAX_TERMS = 2**23
"""Numbers held at once while screening: 32 MB."""

MAX_ROUNDS = 30
BEYOND = 0.1
"""Retention below the lowest searched one for which experts are made too."""


@dataclass(frozen=True)
class Moves:
    """Exchanges of levels between two layers, [A, L] each: `up` raised by one or two, another lowered.

    All pairs of layers, by (1, 1) levels; where the layers' costs differ also by (1, 2) and (2, 1). Single raises too.
    """

    steps: Tensor

    @classmethod
    def of(cls, encoding: Encoding) -> "Moves":
        L = encoding.grid.num_layers
        eye = torch.eye(L, dtype=torch.int64)
        differing = len(set(encoding.grid.costs)) > 1
        ratios = [(1, 1), (1, 2), (2, 1)] if differing else [(1, 1)]
        pairs = [up * eye[i] - down * eye[j] for up, down in ratios for i in range(L) for j in range(L) if i != j]
        return cls(steps=torch.stack([*eye, *pairs]))


def neighbours(encoding: Encoding, moves: Tensor, levels: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """`levels` [B, L] after each of `moves` [A, L], and which of them are valid: [B, A, L] and bool [B, A].

    Valid means within the grid, within `budget` [B], and using it up as `LevelGrid.feasible_levels` demands.
    """
    moved = levels[:, None] + moves
    inside = ((moved >= 0) & (moved < encoding.grid.num_levels)).all(dim=2)
    moved = moved.clamp(0, encoding.grid.num_levels - 1)
    left = budget[:, None] - encoding.costs_of_levels(moved).sum(dim=2)
    return moved, inside & (left >= 0) & (left < encoding.grid.largest_step)


def random_budgets(encoding: Encoding, data: TrainingData, count: int, generator: torch.Generator) -> Tensor:
    """[R] int64 parameters, ascending, uniform from a little below the searched retentions up to nearly dense."""
    total, lowest = encoding.grid.max_cost_from[0], encoding.grid.min_cost_from[0]
    low = max(float(data.retention[data.searched].min()) - BEYOND, lowest / total)
    # Stratified: one budget per equal slice, so that no range is left out by chance.
    slices = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    retention = low + (0.995 - low) * slices.double()
    return (retention * total).long().clamp(min=lowest)


def starting_points(encoding: Encoding, data: TrainingData, budgets: Tensor) -> Tensor:
    """0-based levels [R, 3, L]: two best samples near each budget, fitted to it, and the additive optimum."""
    grid = encoding.grid
    table = np.concatenate([encoding.log_sensitivity.double().exp().numpy(), np.zeros((grid.num_layers, 1))], axis=1)
    solution = cost_to_go(grid, table, grid.max_cost_from[0])
    total = grid.max_cost_from[0]
    rows: list[list[list[int]]] = []
    for budget in budgets.tolist():
        distance = (data.retention - budget / total).abs() / 0.05
        near = (distance.square() + data.gap + 1e6 * ~data.on_grid).topk(2, largest=False).indices
        samples = [fit_to_budget(encoding, data.levels[n].clamp(min=0).tolist(), budget, table) for n in near]
        optimum = fill_up(grid, solution.best_configuration(budget), budget, table)
        rows.append([*samples, [k - 1 for k in optimum]])
    return torch.tensor(rows)


def fit_to_budget(encoding: Encoding, levels: list[int], budget: int, table: FloatArray) -> list[int]:
    """0-based `levels` [L] lowered where `table` [L, K] rises least per parameter until they fit, then filled up."""
    grid = encoding.grid
    current = list(levels)
    excess = sum(row[k] for row, k in zip(grid.costs, current, strict=True)) - budget
    while excess > 0:
        saved = [grid.costs[i][k] - grid.costs[i][k - 1] if k > 0 else 0 for i, k in enumerate(current)]
        loss = [(table[i, k - 1] - table[i, k]) / saved[i] if k > 0 else np.inf for i, k in enumerate(current)]
        layer = int(np.argmin(loss))
        excess -= saved[layer]
        current[layer] -= 1
    return [k - 1 for k in fill_up(grid, tuple(k + 1 for k in current), budget, table)]


def improve(
    encoding: Encoding, values: Values, moves: Moves, starts: Tensor, budgets: Tensor, generator: torch.Generator
) -> Tensor:
    """The best levels [R, L] that steepest descent over exchanges reaches from `starts` [R, P, L].

    Descends on the regression part of the values; the end points are then judged by all of them. Where there are more
    moves than fit, every round looks at a random part.
    """
    R, P, L = starts.shape
    walkers, room = starts.reshape(R * P, L), budgets.repeat_interleave(P)
    scores = values.screen(encoding.fractions_of_levels(walkers), PESSIMISM)
    per_round = max(32, min(len(moves.steps), MAX_SCREENED // (R * P)))
    for _ in range(MAX_ROUNDS):
        before = scores
        chosen = torch.randperm(len(moves.steps), generator=generator)[:per_round]
        walkers, scores = descend(encoding, values, moves.steps[chosen], walkers, scores, room)
        if per_round >= len(moves.steps) and torch.equal(before, scores):
            break
    judged = values.pessimistic(encoding.fractions_of_levels(walkers), PESSIMISM).view(R, P)
    return walkers.view(R, P, L)[torch.arange(R), judged.argmin(dim=1)]


def descend(
    encoding: Encoding, values: Values, moves: Tensor, levels: Tensor, scores: Tensor, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """`levels` [B, L] and screened `scores` [B] after the best valid one of `moves` [A, L], where it helps."""
    moved, valid = neighbours(encoding, moves, levels, budget)
    moved_scores = torch.full(valid.shape, torch.inf)
    moved_scores[valid] = _screen(encoding, values, moved[valid])
    best, index = moved_scores.min(dim=1)
    better = best < scores - SMALLEST_GAIN
    levels = torch.where(better[:, None], moved[torch.arange(len(levels)), index], levels)
    return levels, torch.where(better, best, scores)


def _screen(encoding: Encoding, values: Values, levels: Tensor) -> Tensor:
    """Pessimistic screened log KL [B] of `levels` [B, L], so many at once that their terms fit `MAX_TERMS`."""
    chunk = max(1, MAX_TERMS // values.num_terms)
    scores = [
        values.screen(encoding.fractions_of_levels(levels[i : i + chunk]), PESSIMISM)
        for i in range(0, len(levels), chunk)
    ]
    return torch.cat(scores) if scores else torch.empty(0)
