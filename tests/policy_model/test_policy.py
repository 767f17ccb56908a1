"""The network that is trained: masks, causality, and equal answers of the decoder that serves it."""

import numpy as np
import pytest
import torch

from policy_model.costs import DecisionCosts, num_step_features, parameter_costs
from policy_model.decoder import PolicyDecoder, gumbel_noise
from policy_model.policy import Policy, policy_loss
from policy_model.policy_config import PolicyConfig
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.space import Space
from storage.records import Sample
from values.encoding import Encoding, encode


@pytest.fixture
def encoding(anatomy: ModelAnatomy, space: Space, samples: list[Sample]) -> Encoding:
    return encode(anatomy, space, samples)


@pytest.fixture
def features(encoding: Encoding) -> torch.Tensor:
    return torch.from_numpy(encoding.features).float()


@pytest.fixture
def policy(encoding: Encoding) -> Policy:
    """Random weights everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(6, 4, encoding.features.shape[1], width=32, num_heads=2))
    policy.head.weight.data.normal_(0.0, 0.3)
    policy.head.bias.data.normal_(0.0, 0.3)
    return policy


def decoder_of(policy: Policy, encoding: Encoding) -> PolicyDecoder:
    weights = {name: p.detach().numpy() for name, p in policy.state_dict().items()}
    return PolicyDecoder(weights, policy.config.num_heads, encoding.features)


def tensors(costs: DecisionCosts, levels: torch.Tensor, slack: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    found, feasible = costs.trajectory(levels.numpy(), np.array(slack, dtype=np.int64)[:, None])
    return torch.from_numpy(found).float(), torch.from_numpy(feasible)


def test_infeasible_levels_have_probability_exactly_zero(
    policy: Policy, encoding: Encoding, features: torch.Tensor
) -> None:
    costs, levels = parameter_costs(encoding), torch.tensor([[3, 0, 3, 0, 3, 0], [0, 1, 0, 1, 0, 1]])
    steps, feasible = tensors(costs, levels, costs.spent(levels.numpy())[:, 0].tolist())
    assert not feasible.all()
    p = policy(features, steps, levels, feasible).exp()
    assert torch.equal(p == 0.0, ~feasible)
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(2, 6))


def test_infeasible_levels_get_no_gradient(policy: Policy, encoding: Encoding, features: torch.Tensor) -> None:
    levels = torch.tensor([[0, 0, 0, 0, 0, 0]])
    steps, feasible = tensors(parameter_costs(encoding), levels, [0])
    feasible[..., 2] = False
    policy_loss(policy(features, steps, levels, feasible), levels, torch.ones(1)).backward()  # type: ignore[no-untyped-call]
    gradient = policy.head.bias.grad
    assert gradient is not None
    assert gradient[2] == 0.0
    assert torch.isfinite(gradient).all()


def test_decoding_in_numpy_is_the_network_in_torch(policy: Policy, encoding: Encoding, features: torch.Tensor) -> None:
    """Teacher-forced on what was decoded, the network gives every level of every decision the same probability."""
    costs, slack = parameter_costs(encoding), [500, 1200, 2000, 3000]
    decoder, noise = decoder_of(policy, encoding), gumbel_noise(6, 4, 4, seed=1)
    levels = decoder.decode(costs, np.array(slack)[:, None], noise)
    forced = torch.from_numpy(levels)
    with torch.no_grad():
        log_p = policy(features, *tensors(costs, forced, slack)[:1], forced, tensors(costs, forced, slack)[1])
    for row, left in enumerate(slack):
        for layer in range(6):
            p = decoder.next_level(costs, np.array([left]), levels[row, :layer])
            np.testing.assert_allclose(p, log_p[row, layer].exp().numpy(), atol=1e-5, rtol=1e-4)
    # What is decoded is most likely under the noise.
    assert np.array_equal((log_p.numpy() + noise.transpose(1, 0, 2)).argmax(axis=2), levels)
    assert len(np.unique(levels, axis=0)) > 1


def test_a_decision_does_not_see_later_ones(policy: Policy, features: torch.Tensor) -> None:
    levels = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 3, 0, 2]])
    steps = torch.randn(1, 6, num_step_features(4)).expand(2, -1, -1)
    log_p = policy(features, steps, levels, torch.ones(2, 6, 4, dtype=torch.bool))
    torch.testing.assert_close(log_p[0, :4], log_p[1, :4])
    assert not torch.allclose(log_p[0, 4], log_p[1, 4])


def test_policy_loss_is_the_weighted_mean() -> None:
    log_p = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]]).log()
    loss = policy_loss(log_p, torch.tensor([[0], [1]]), torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx((3 * 1.3862944 + 0.6931472) / 4)
