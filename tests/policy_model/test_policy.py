"""The network that is trained: masks, causality, no size of the problem in a weight, and the decoder that serves it."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from policy_model.costs import DecisionCosts, parameter_costs
from policy_model.decoder import PolicyDecoder, gumbel_noise
from policy_model.local_search import LevelValues
from policy_model.model_features import ModelFeatures
from policy_model.policy import Policy, policy_loss
from policy_model.policy_config import PolicyConfig
from policy_model.problem_features import NUM_STEP_FEATURES, NUM_TAKEN_FEATURES, ProblemFeatures
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.space import Space
from storage.records import Sample
from tests.values.landscape import anatomy_of, samples_of
from values.dataset import training_data
from values.encoding import Encoding, encode
from values.value_training import fit_values

CONFIG = PolicyConfig(width=32, num_heads=2, option_width=16)


def features_of(encoding: Encoding, samples: list[Sample]) -> ModelFeatures:
    values = fit_values(encoding, training_data(encoding, samples)).values
    table = LevelValues(values, encoding.fractions)
    return ModelFeatures.of(encoding, table.fractions, table.own)


@pytest.fixture(scope="module")
def encoding(anatomy: ModelAnatomy, space: Space, samples: list[Sample]) -> Encoding:
    return encode(anatomy, space, samples)


@pytest.fixture(scope="module")
def problem(encoding: Encoding, samples: list[Sample]) -> ProblemFeatures:
    return ProblemFeatures(features_of(encoding, samples), parameter_costs(encoding))


def random_policy(seed: int = 0) -> Policy:
    """Random weights everywhere, also where training starts from zero."""
    torch.manual_seed(seed)
    policy = Policy(CONFIG)
    policy.score.data.normal_(0.0, 0.3)
    return policy


@pytest.fixture
def policy() -> Policy:
    return random_policy()


def decoder_of(policy: Policy, problem: ProblemFeatures) -> PolicyDecoder:
    weights = {name: p.detach().numpy() for name, p in policy.state_dict().items()}
    return PolicyDecoder(weights, policy.config, problem.model.decisions)


def log_probabilities(
    policy: Policy, problem: ProblemFeatures, choices: torch.Tensor, slack: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced, and what is feasible."""
    found = problem.trajectory(choices.numpy(), np.array(slack, dtype=np.int64)[:, None])
    feasible = torch.from_numpy(found.feasible)
    options = torch.from_numpy(problem.options).float().expand(len(choices), -1, -1, -1)
    decisions = torch.from_numpy(problem.model.decisions).float()
    steps, taken = torch.from_numpy(found.steps), torch.from_numpy(found.taken)
    return policy(decisions, options, steps, taken, feasible, choices), feasible


def test_infeasible_options_have_probability_exactly_zero(policy: Policy, problem: ProblemFeatures) -> None:
    choices = torch.tensor([[3, 0, 3, 0, 3, 0], [0, 1, 0, 1, 0, 1]])
    log_p, feasible = log_probabilities(policy, problem, choices, problem.costs.spent(choices.numpy())[:, 0].tolist())
    assert not feasible.all()
    p = log_p.exp()
    assert torch.equal(p == 0.0, ~feasible)
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(2, 6))


def test_gradients_stay_finite_where_options_are_infeasible(policy: Policy, problem: ProblemFeatures) -> None:
    choices = torch.tensor([[0, 0, 0, 0, 0, 0]])
    log_p, feasible = log_probabilities(policy, problem, choices, [0])
    assert not feasible[..., 1:].any()
    assert policy_loss(log_p, choices).item() == 0.0
    policy_loss(log_p, choices).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize("attention", [1.0, 30.0], ids=["bounded", "unbounded"])
def test_decoding_in_numpy_is_the_network_in_torch(policy: Policy, problem: ProblemFeatures, attention: float) -> None:
    """Teacher-forced on what was decoded, the network gives every option of every decision the same probability; also
    where scores of attention are too large to be summed up as they are."""
    for block in policy.blocks:
        block.get_parameter("query_key_value.weight").data[:, : 2 * CONFIG.width] *= attention
    slack = [500, 1200, 2000, 3000]
    decoder, noise = decoder_of(policy, problem), gumbel_noise(6, 4, 4, seed=1)
    assert all(block.is_bounded == (attention == 1.0) for block in decoder._blocks)
    choices = decoder.decode(problem, np.array(slack)[:, None], noise)
    with torch.no_grad():
        log_p, _ = log_probabilities(policy, problem, torch.from_numpy(choices), slack)
    for row, left in enumerate(slack):
        for n in range(6):
            p = decoder.next_option(problem, np.array([left]), choices[row, :n])
            np.testing.assert_allclose(p, log_p[row, n].exp().numpy(), atol=1e-5, rtol=1e-4)
    # What is decoded is most likely under the noise.
    assert np.array_equal((log_p.numpy() + noise.transpose(1, 0, 2)).argmax(axis=2), choices)
    assert len(np.unique(choices, axis=0)) > 1


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("short_turns")
def test_threads_decode_side_by_side_and_after_an_error(policy: Policy, problem: ProblemFeatures) -> None:
    decoder = decoder_of(policy, problem)
    slack = [np.array([[500 + 100 * n], [3000 - 200 * n]]) for n in range(8)]
    noise = [gumbel_noise(6, 2, 4, seed=n) for n in range(8)]
    alone = [decoder.decode(problem, *asked) for asked in zip(slack, noise, strict=True)]
    with pytest.raises(IndexError):
        decoder.decode(problem, slack[0], noise[0][:3])  # stops in the middle
    with ThreadPoolExecutor(8) as pool:
        for _ in range(40):
            found = list(pool.map(decoder.decode, [problem] * 8, slack, noise))
            assert all(map(np.array_equal, found, alone))


def test_a_decision_does_not_see_later_ones(policy: Policy, problem: ProblemFeatures) -> None:
    choices = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 3, 0, 2]])
    options = torch.from_numpy(problem.options).float().expand(2, -1, -1, -1)
    steps = torch.randn(1, 6, NUM_STEP_FEATURES).expand(2, -1, -1)
    taken = torch.randn(1, 6, 4, NUM_TAKEN_FEATURES).expand(2, -1, -1, -1)
    decisions = torch.from_numpy(problem.model.decisions).float()
    log_p = policy(decisions, options, steps, taken, torch.ones(2, 6, 4, dtype=torch.bool), choices)
    torch.testing.assert_close(log_p[0, :4], log_p[1, :4])
    assert not torch.allclose(log_p[0, 4], log_p[1, 4])


@pytest.mark.parametrize(("widths", "num_levels", "limits"), [([64] * 3, 5, 1), ([32, 64, 32, 96, 64], 3, 2)])
def test_the_same_weights_decide_in_any_space_under_any_limits(
    policy: Policy, widths: list[int], num_levels: int, limits: int
) -> None:
    """Another number of decisions, of options and of limits; and no weight has such a size."""
    anatomy = anatomy_of(widths)
    space = ffn_levels(anatomy, num_levels=num_levels, round_to=8)
    samples = samples_of(anatomy, space)
    encoding = encode(anatomy, space, samples)
    excess = np.concatenate([parameter_costs(encoding).excess * (j + 1) for j in range(limits)])
    other = ProblemFeatures(features_of(encoding, samples), DecisionCosts(excess))
    slack = np.tile(other.costs.most_from[0] // 2, (3, 1))
    choices = decoder_of(policy, other).decode(other, slack, gumbel_noise(len(widths), 3, num_levels, seed=0))
    assert (other.costs.spent(choices) <= slack).all()
    assert choices.max() < num_levels


def test_a_limit_twice_changes_nothing(policy: Policy, problem: ProblemFeatures) -> None:
    """Nor does one that counts in another unit."""
    twice = DecisionCosts(np.concatenate([problem.costs.excess, 7 * problem.costs.excess]))
    both = ProblemFeatures(problem.model, twice)
    slack, noise = np.array([[500], [1200], [3000]]), gumbel_noise(6, 3, 4, seed=3)
    one = decoder_of(policy, problem).decode(problem, slack, noise)
    two = decoder_of(policy, both).decode(both, slack * [1, 7], noise)
    assert np.array_equal(one, two)


def test_policy_loss_is_the_mean() -> None:
    log_p = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]]).log()
    assert policy_loss(log_p, torch.tensor([[0], [1]])).item() == pytest.approx((1.3862944 + 0.6931472) / 2)
