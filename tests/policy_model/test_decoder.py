"""Decoding on a model whose layers differ in width and price: budgets are kept, whatever the weights."""

import numpy as np
import pytest

from policy_model.costs import DecisionCosts, ManyCosts, parameter_costs
from policy_model.decoder import PolicyDecoder, gumbel_noise
from policy_model.problem_features import ProblemFeatures
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.prices import ffn_parameters
from pruning.planning.target import ffn_parameter_limits
from tests.policy_model.test_policy import decoder_of, features_of, random_policy
from tests.values.landscape import anatomy_of, samples_of
from values.encoding import encode

UNEVEN = anatomy_of([64, 32, 96, 64, 32], [3, 7, 2, 5, 4])
SPACE = ffn_levels(UNEVEN, num_levels=4, round_to=8)
ENCODING = encode(UNEVEN, SPACE, samples_of(UNEVEN, SPACE))
COSTS = parameter_costs(ENCODING)
LEAST = ffn_parameters(UNEVEN).limit(SPACE, 0).least


@pytest.fixture(scope="module")
def problem() -> ProblemFeatures:
    return ProblemFeatures(features_of(ENCODING, samples_of(UNEVEN, SPACE)), COSTS)


@pytest.fixture
def decoder(problem: ProblemFeatures) -> PolicyDecoder:
    return decoder_of(random_policy(), problem)


def test_candidate_zero_is_greedy_and_noise_is_seeded() -> None:
    noise = gumbel_noise(3, 4, 5, seed=7)
    assert not noise[:, 0].any()
    assert np.array_equal(noise, gumbel_noise(3, 4, 5, seed=7))
    assert not np.array_equal(noise, gumbel_noise(3, 4, 5, seed=8))


def test_every_decoded_candidate_keeps_to_its_own_budget(decoder: PolicyDecoder, problem: ProblemFeatures) -> None:
    slack = np.linspace(0, COSTS.most_from[0, 0], 50).astype(np.int64)[:, None]
    levels = decoder.decode(problem, slack, gumbel_noise(5, 50, 4, seed=0))
    for row, spare in zip(levels, slack, strict=True):
        limits = ffn_parameter_limits(UNEVEN, SPACE, LEAST + int(spare[0]))
        remaining = limits.spare
        for layer, level in enumerate(row):
            assert limits.feasible(layer, remaining)[level]
            remaining = remaining - limits.table.excess[:, layer, level]
        assert (limits.slack(row) >= 0).all()
    assert levels[0].tolist() == [0] * 5


def test_several_limits_hold_at_once(decoder: PolicyDecoder, problem: ProblemFeatures) -> None:
    second = np.array([[0, 5, 5, 90], [0, 0, 0, 60], [0, 1, 2, 3], [0, 30, 31, 32], [0, 0, 40, 80]])
    costs = DecisionCosts(np.stack([COSTS.excess[0], second]))
    slack = np.stack([np.linspace(0, 1200, 20), np.linspace(265, 0, 20)], axis=1).astype(np.int64)
    levels = decoder.decode(ProblemFeatures(problem.model, costs), slack, gumbel_noise(5, 20, 4, seed=2))
    assert (costs.spent(levels) <= slack).all()


def test_the_most_likely_levels_of_single_steps_are_what_is_decoded(
    decoder: PolicyDecoder, problem: ProblemFeatures
) -> None:
    slack = np.array([700], dtype=np.int64)
    levels = decoder.decode(problem, slack[None], np.zeros((5, 1, 4), dtype=np.float32))
    for layer in range(5):
        p = decoder.next_option(problem, slack, levels[0, :layer])
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert int(p.argmax()) == levels[0, layer]


def test_many_problems_at_once_are_decoded_as_one_by_one(decoder: PolicyDecoder, problem: ProblemFeatures) -> None:
    """Of costs of their own each; a limit that is repeated is none."""
    rng = np.random.default_rng(0)
    second = np.sort(rng.integers(0, 500, (6, 5, 4)), axis=2)
    second -= second[:, :, :1]
    excess = np.stack([np.repeat(COSTS.excess, 6, axis=0), second])
    slack = (excess[..., -1].sum(axis=2) * rng.uniform(0.2, 0.9, (2, 6))).astype(np.int64).T
    excess[1, 3:], slack[3:, 1] = excess[0, 3:], slack[3:, 0]
    noise = gumbel_noise(5, 6, 4, seed=4)
    together = decoder.decode(ProblemFeatures(problem.model, ManyCosts(excess)), slack, noise)
    for row in range(6):
        limits = 2 if row < 3 else 1
        costs = DecisionCosts(excess[:limits, row])
        alone = decoder.decode(ProblemFeatures(problem.model, costs), slack[row : row + 1, :limits], noise[:, [row]])
        assert np.array_equal(alone[0], together[row]), row
