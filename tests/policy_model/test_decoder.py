"""Decoding on a model whose layers differ in width and price: budgets are kept, whatever the weights."""

import numpy as np
import pytest
import torch

from policy_model.costs import DecisionCosts, parameter_costs
from policy_model.decoder import PolicyDecoder, gumbel_noise
from policy_model.policy import Policy
from policy_model.policy_config import PolicyConfig
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.prices import ffn_parameters
from pruning.planning.target import ffn_parameter_limits
from tests.values.landscape import anatomy_of, samples_of
from values.encoding import encode

UNEVEN = anatomy_of([64, 32, 96, 64, 32], [3, 7, 2, 5, 4])
SPACE = ffn_levels(UNEVEN, num_levels=4, round_to=8)
COSTS = parameter_costs(encode(UNEVEN, SPACE, []))
LEAST = ffn_parameters(UNEVEN).limit(SPACE, 0).least


@pytest.fixture
def decoder() -> PolicyDecoder:
    torch.manual_seed(0)
    encoding = encode(UNEVEN, SPACE, samples_of(UNEVEN, SPACE))
    policy = Policy(PolicyConfig(5, 4, encoding.features.shape[1], width=32, num_heads=2))
    policy.head.weight.data.normal_(0.0, 0.3)
    weights = {name: p.detach().numpy() for name, p in policy.state_dict().items()}
    return PolicyDecoder(weights, 2, encoding.features)


def test_candidate_zero_is_greedy_and_noise_is_seeded() -> None:
    noise = gumbel_noise(3, 4, 5, seed=7)
    assert not noise[:, 0].any()
    assert np.array_equal(noise, gumbel_noise(3, 4, 5, seed=7))
    assert not np.array_equal(noise, gumbel_noise(3, 4, 5, seed=8))


def test_every_decoded_candidate_keeps_to_its_own_budget(decoder: PolicyDecoder) -> None:
    slack = np.linspace(0, COSTS.most_from[0, 0], 50).astype(np.int64)[:, None]
    levels = decoder.decode(COSTS, slack, gumbel_noise(5, 50, 4, seed=0))
    for row, spare in zip(levels, slack, strict=True):
        limits = ffn_parameter_limits(UNEVEN, SPACE, LEAST + int(spare[0]))
        remaining = limits.spare
        for layer, level in enumerate(row):
            assert limits.feasible(layer, remaining)[level]
            remaining = remaining - limits.table.excess[:, layer, level]
        assert (limits.slack(row) >= 0).all()
    assert levels[0].tolist() == [0] * 5


def test_several_limits_hold_at_once(decoder: PolicyDecoder) -> None:
    second = np.array([[0, 5, 5, 90], [0, 0, 0, 60], [0, 1, 2, 3], [0, 30, 31, 32], [0, 0, 40, 80]])
    costs = DecisionCosts(np.stack([COSTS.excess[0], second]))
    slack = np.stack([np.linspace(0, 1200, 20), np.linspace(265, 0, 20)], axis=1).astype(np.int64)
    levels = decoder.decode(costs, slack, gumbel_noise(5, 20, 4, seed=2))
    assert (costs.spent(levels) <= slack).all()


def test_the_most_likely_levels_of_single_steps_are_what_is_decoded(decoder: PolicyDecoder) -> None:
    slack = np.array([700], dtype=np.int64)
    levels = decoder.decode(COSTS, slack[None], np.zeros((5, 1, 4), dtype=np.float32))
    for layer in range(5):
        p = decoder.next_level(COSTS, slack, levels[0, :layer])
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert int(p.argmax()) == levels[0, layer]
