"""The networks: masks, equal answers by two ways of computing, and values at hand-worked points."""

import pytest
import torch

from policy_model.decoding import decode, gumbel_noise
from policy_model.encoding import KL_FLOOR_NATS, Encoding, encode
from policy_model.model import ModelConfig, PlanModel, Values, policy_loss, value_loss
from pruning.anatomy import ModelAnatomy
from pruning.levels import LevelGrid
from storage.records import Sample


@pytest.fixture
def encoding(anatomy: ModelAnatomy, grid: LevelGrid, samples: list[Sample]) -> Encoding:
    return encode(anatomy, grid, samples)


@pytest.fixture
def model(encoding: Encoding) -> PlanModel:
    """Random weights everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    config = ModelConfig(6, 4, encoding.features.shape[1], policy_width=32, policy_heads=2, num_members=3)
    model = PlanModel(config, encoding)
    for parameter in (model.policy.head.weight, model.values.head.weight, model.values.readout, model.values.spread):
        parameter.data.normal_(0.0, 0.3)
    return model


def test_infeasible_levels_have_probability_exactly_zero(model: PlanModel, encoding: Encoding) -> None:
    levels = torch.tensor([[3, 0, 3, 0, 3, 0], [0, 1, 0, 1, 0, 1]])
    budget = encoding.costs_of_levels(levels).sum(dim=1)
    features, feasible = encoding.trajectory_features(levels, budget)
    assert not feasible.all()
    p = model.policy(encoding.features, features, levels, feasible).exp()
    assert torch.equal(p == 0.0, ~feasible)
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(2, 6))


def test_infeasible_levels_get_no_gradient(model: PlanModel, encoding: Encoding) -> None:
    levels = torch.tensor([[0, 0, 0, 0, 0, 0]])
    features, feasible = encoding.trajectory_features(levels, encoding.costs_of_levels(levels).sum(dim=1))
    feasible[..., 2] = False
    policy_loss(model.policy(encoding.features, features, levels, feasible), levels, torch.ones(1)).backward()  # type: ignore[no-untyped-call]
    gradient = model.policy.head.bias.grad
    assert gradient is not None
    assert gradient[2] == 0.0
    assert torch.isfinite(gradient).all()


def test_teacher_forced_log_probabilities_equal_those_of_decoding(model: PlanModel, encoding: Encoding) -> None:
    budget = torch.tensor([2000, 2500, 3000, 4000])
    with torch.no_grad():
        prefix = model.policy.encode_layers(encoding.features)
        levels, stepwise = decode(model.policy, encoding, prefix, budget, gumbel_noise(6, 4, 4, seed=1))
        features, feasible = encoding.trajectory_features(levels, budget)
        forced = model.policy(encoding.features, features, levels, feasible)
    torch.testing.assert_close(forced.gather(-1, levels[..., None])[..., 0], stepwise, atol=1e-5, rtol=1e-4)
    assert len(torch.unique(levels, dim=0)) > 1


def test_a_decision_does_not_see_later_ones(model: PlanModel, encoding: Encoding) -> None:
    levels = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 3, 0, 2]])
    features = torch.randn(1, 6, 6).expand(2, -1, -1)
    feasible = torch.ones(2, 6, 4, dtype=torch.bool)
    log_p = model.policy(encoding.features, features, levels, feasible)
    torch.testing.assert_close(log_p[0, :4], log_p[1, :4])
    assert not torch.allclose(log_p[0, 4], log_p[1, 4])


def test_policy_loss_is_the_weighted_mean() -> None:
    log_p = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]]).log()
    loss = policy_loss(log_p, torch.tensor([[0], [1]]), torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx((3 * 1.3862944 + 0.6931472) / 4)


def test_value_loss_ignores_what_has_no_weight() -> None:
    predicted, target = torch.tensor([[0.0, 5.0]]), torch.tensor([[0.2, 0.0]])
    assert value_loss(predicted, target, torch.tensor([[2.0, 0.0]])).item() == pytest.approx(0.02)  # 0.2^2 / 2


def test_the_dense_model_loses_nothing_whatever_the_weights(model: PlanModel) -> None:
    value = model.values(torch.ones(1, 6))
    torch.testing.assert_close(value, torch.full((3, 1), KL_FLOOR_NATS).log())


def test_own_kl_is_the_scan_at_the_levels_and_between_them(model: PlanModel, encoding: Encoding) -> None:
    curve = encoding.log_sensitivity[0]
    x = torch.ones(4, 6)
    x[:, 0] = torch.tensor([0.25, 0.5, 0.375, 0.875])
    own = model.values.own_kl(x)
    expected = torch.stack([curve[0].exp(), curve[1].exp(), ((curve[0] + curve[1]) / 2).exp(), curve[2].exp() / 2])
    torch.testing.assert_close(own[:, 0], expected)
    assert (own[:, 1:] == 0.0).all()


def test_own_kl_keeps_rising_below_the_lowest_level(model: PlanModel, encoding: Encoding) -> None:
    x = torch.ones(1, 6)
    x[:, 0] = 0.125
    curve = encoding.log_sensitivity[0]
    torch.testing.assert_close(model.values.own_kl(x)[0, 0], (curve[0] + (curve[0] - curve[1]) / 2).exp())


def test_untrained_values_add_the_layers_up(encoding: Encoding) -> None:
    values = Values(ModelConfig(6, 4, encoding.features.shape[1], num_members=2), encoding)
    x = torch.tensor([[0.5, 0.75, 1.0, 1.0, 0.25, 1.0]])
    s = encoding.log_sensitivity.exp()
    total = s[0, 1] + s[1, 2] + s[4, 0] + KL_FLOOR_NATS
    torch.testing.assert_close(values(x), total.log().expand(2, 1))


def test_pessimism_adds_standard_deviations(model: PlanModel) -> None:
    x = torch.rand(5, 6) * 0.9 + 0.05
    with torch.no_grad():
        terms = model.values.terms(x, model.values.own_kl(x))
        deviation = (terms @ model.values.spread.t()).square().mean(dim=1).sqrt()
        torch.testing.assert_close(model.values.pessimistic(x, 2.0), model.values(x).mean(dim=0) + 2.0 * deviation)
        screened = model.values(x).mean(dim=0) - model.values.correction(x).mean(dim=0)
        torch.testing.assert_close(model.values.screen(x, 2.0), screened + 2.0 * deviation)


def test_members_do_not_see_each_other(model: PlanModel) -> None:
    x = torch.rand(2, 6)
    before = model.values(x)
    for name, parameter in model.values.named_parameters():
        if name != "spread":
            parameter.data[2] += 1.0
    after = model.values(x)
    torch.testing.assert_close(after[:2], before[:2])
    assert not torch.allclose(after[2], before[2])
