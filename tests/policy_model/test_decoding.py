"""Decoding, choosing and finding experts, on a model whose layers differ in width and price."""

import pytest
import torch

from policy_model.dataset import training_data
from policy_model.decoding import best_levels, decode, gumbel_noise, marginal_worth, polish
from policy_model.encoding import Encoding, encode
from policy_model.experts import Moves, improve, neighbours, random_budgets, starting_points
from policy_model.model import ModelConfig, PlanModel
from policy_model.policy_training import PolicyTraining
from pruning.levels import LevelGrid
from tests.policy_model.landscape import anatomy_of, samples_of

UNEVEN = anatomy_of([64, 32, 96, 64, 32], [3, 7, 2, 5, 4])
GRID = LevelGrid.build(UNEVEN, num_levels=4, round_to=8)
SAMPLES = samples_of(UNEVEN, GRID)


@pytest.fixture
def encoding() -> Encoding:
    return encode(UNEVEN, GRID, SAMPLES)


@pytest.fixture
def model(encoding: Encoding) -> PlanModel:
    torch.manual_seed(0)
    config = ModelConfig(5, 4, encoding.features.shape[1], policy_width=32, policy_heads=2, num_members=2)
    return PlanModel(config, encoding).requires_grad_(False)


def uses_up(encoding: Encoding, levels: torch.Tensor, budget: torch.Tensor) -> bool:
    """Whether every decision of `levels` [B, L] is one that the grid allows for `budget` [B]."""
    for row, room in zip(levels.tolist(), budget.tolist(), strict=True):
        remaining = room
        for layer, level in enumerate(row):
            if level + 1 not in encoding.grid.feasible_levels(layer, remaining):
                return False
            remaining -= encoding.grid.costs[layer][level]
        assert remaining >= 0
    return True


def test_candidate_zero_is_greedy_and_noise_is_seeded() -> None:
    noise = gumbel_noise(3, 4, 5, seed=7)
    assert torch.equal(noise[:, 0], torch.zeros(3, 5))
    assert torch.equal(noise, gumbel_noise(3, 4, 5, seed=7))
    assert not torch.equal(noise, gumbel_noise(3, 4, 5, seed=8))


def test_every_decoded_candidate_keeps_to_its_own_budget(model: PlanModel, encoding: Encoding) -> None:
    budget = torch.linspace(GRID.min_cost_from[0], GRID.max_cost_from[0], 50).long()
    prefix = model.policy.encode_layers(encoding.features)
    levels, log_p = decode(model.policy, encoding, prefix, budget, gumbel_noise(5, 50, 4, seed=0))
    assert uses_up(encoding, levels, budget)
    assert torch.isfinite(log_p).all()
    assert levels[0].tolist() == [0] * 5


def test_choosing_never_makes_a_candidate_worse(model: PlanModel, encoding: Encoding) -> None:
    budget = int(GRID.max_cost_from[0] * 0.6)
    rows = torch.full((8,), budget)
    prefix = model.policy.encode_layers(encoding.features)
    candidates, _ = decode(model.policy, encoding, prefix, rows, gumbel_noise(5, 8, 4, seed=1))
    best = best_levels(encoding, model.values, candidates, budget)
    assert uses_up(encoding, best[None], rows[:1])
    scores = model.values.pessimistic(encoding.fractions_of_levels(torch.cat([best[None], candidates])), 3.0)
    assert scores[0] <= scores[1:].min() + 1e-5


def test_polishing_finds_the_exchange_that_helps(model: PlanModel, encoding: Encoding) -> None:
    """Layer 1 is by far the most sensitive, layer 3 hardly at all: pruning them the wrong way round is put right."""
    wrong = torch.tensor([3, 0, 3, 3, 3])
    budget = int(encoding.costs_of_levels(wrong).sum())
    score = float(model.values.screen(encoding.fractions_of_levels(wrong[None]), 3.0))
    better = polish(encoding, model.values, wrong, score, budget)
    assert better[1] > 0
    assert uses_up(encoding, better[None], torch.tensor([budget]))
    assert float(model.values.screen(encoding.fractions_of_levels(better[None]), 3.0)) < score - 0.1


def test_marginal_worth_is_the_fall_of_log_kl_per_parameter(model: PlanModel, encoding: Encoding) -> None:
    widths = torch.tensor([32, 16, 48, 32, 32])
    worth = marginal_worth(encoding, model.values, widths, 8)
    grown = widths.clone()
    grown[1] += 8
    values = model.values(encoding.kept_fractions(torch.stack([widths, grown]))).mean(dim=0)
    assert worth[1] == pytest.approx(float(values[0] - values[1]) / (8 * 7), rel=1e-3)
    assert worth[4] == 0.0  # dense already


def test_moves_keep_to_grid_and_budget(encoding: Encoding) -> None:
    moves = Moves.of(encoding).steps
    assert len(moves) == 5 + 3 * 5 * 4
    levels, budget = torch.tensor([[0, 1, 3, 2, 1]]), torch.tensor([600])
    moved, valid = neighbours(encoding, moves, levels, budget)
    assert valid.any()
    kept = moved[valid]
    left = 600 - encoding.costs_of_levels(kept).sum(dim=1)
    assert ((left >= 0) & (left < GRID.largest_step)).all()


def test_experts_fit_their_budgets_and_are_no_worse_than_their_starts(model: PlanModel, encoding: Encoding) -> None:
    data = training_data(GRID, encoding, SAMPLES)
    generator = torch.Generator().manual_seed(0)
    budgets = random_budgets(encoding, data, 12, generator)
    starts = starting_points(encoding, data, budgets)
    assert uses_up(encoding, starts.flatten(0, 1), budgets.repeat_interleave(3))
    found = improve(encoding, model.values, Moves.of(encoding), starts, budgets, generator)
    assert uses_up(encoding, found, budgets)
    value = model.values.pessimistic(encoding.fractions_of_levels(found), 3.0)
    start = model.values.pessimistic(encoding.fractions_of_levels(starts.flatten(0, 1)), 3.0).view(12, 3)
    assert (value <= start.min(dim=1).values + 1e-4).all()
    assert (value < start[:, 0] - 1e-3).any()


def test_no_example_asks_the_policy_for_the_impossible(model: PlanModel, encoding: Encoding) -> None:
    """Every imitated level is feasible for every budget that its example is trained with."""
    data = training_data(GRID, encoding, SAMPLES)
    training = PolicyTraining(model.policy, model.values, encoding, data, seed=0, steps=1)
    for round_index in range(3):
        training.find_experts(round_index, 16)
    examples = training.examples()
    assert len(examples.levels) > 40
    assert float(examples.weights.sum()) == pytest.approx(1.0)
    for budget in (examples.lowest, examples.highest):
        assert uses_up(encoding, examples.levels, budget)
