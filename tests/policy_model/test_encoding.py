"""Features worked out by hand, and the batched mask against `LevelGrid.feasible_levels`."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_model.encoding import KL_FLOOR_NATS, Encoding, encode, log_kl
from pruning.levels import LevelGrid
from storage.records import Sample
from tests.policy_model.landscape import anatomy_of, sample


def small() -> tuple[LevelGrid, Encoding]:
    """Three layers of two levels below dense; the first scanned at one level, the second at both, the third never."""
    anatomy = anatomy_of([30, 30, 60])
    grid = LevelGrid.build(anatomy, num_levels=3, round_to=10)
    scans = [sample(anatomy, [10, 30, 60], 0.5), sample(anatomy, [30, 10, 60], 0.2), sample(anatomy, [30, 20, 60], 0.1)]
    return grid, encode(anatomy, grid, scans)


def test_log_kl_is_finite_at_zero_and_below() -> None:
    assert log_kl(0.0) == log_kl(-1e-5) == math.log(KL_FLOOR_NATS)
    assert log_kl(0.5) == pytest.approx(math.log(0.5), abs=1e-5)


def test_sensitivities_are_read_from_one_layer_samples_and_gaps_are_filled() -> None:
    _, encoding = small()
    first = [log_kl(0.5), log_kl(0.5) + log_kl(0.1) - log_kl(0.2)]  # falls like the second
    second = [log_kl(0.2), log_kl(0.1)]
    third = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(encoding.log_sensitivity, torch.tensor([first, second, third]))
    assert encoding.features[:, -2:].tolist() == [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def test_shape_features() -> None:
    _, encoding = small()
    assert encoding.features[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert encoding.features[:, 1].tolist() == [0.75, 0.75, 1.5]  # 3 x 30 / 120, 3 x 60 / 120
    assert encoding.features[:, 2].tolist() == [0.75, 0.75, 1.5]


def test_no_scan_at_all_still_gives_a_falling_curve() -> None:
    anatomy = anatomy_of([64, 64])
    grid = LevelGrid.build(anatomy, num_levels=4, round_to=8)
    encoding = encode(anatomy, grid, [sample(anatomy, [32, 32], 0.08)])
    scale = log_kl(0.08) - math.log(2)
    expected = [scale + 2 * math.log(p) for p in (0.75, 0.5, 0.25)]
    torch.testing.assert_close(encoding.log_sensitivity, torch.tensor([expected] * 2))


def test_budget_features() -> None:
    _, encoding = small()  # costs: 12 a channel; dense 360, 360, 720; lowest 120, 120, 240
    features = encoding.budget_features(1, torch.tensor([720]), encoding.asked_features(torch.tensor([960])))
    expected = [960 / 1440, math.log(960 / 1440), 720 / 1440, 720 / 1080, (720 - 360) / (1080 - 360), 360 / 720]
    torch.testing.assert_close(features, torch.tensor([expected]))


def test_features_along_a_trajectory() -> None:
    _, encoding = small()
    features, feasible = encoding.trajectory_features(torch.tensor([[0, 2, 1]]), torch.tensor([960]))
    assert features.shape == (1, 3, 6)
    assert feasible.shape == (1, 3, 3)
    asked = encoding.asked_features(torch.tensor([960]))
    torch.testing.assert_close(features[:, 2], encoding.budget_features(2, torch.tensor([480]), asked))


def test_json_round_trip_is_exact() -> None:
    grid, encoding = small()
    copy = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert copy.grid == grid
    assert torch.equal(copy.features, encoding.features)
    assert torch.equal(copy.log_sensitivity, encoding.log_sensitivity)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.data())
def test_mask_is_that_of_the_grid(data: st.DataObject) -> None:
    """Along any feasible walk, for layers of different width and price."""
    layers = data.draw(st.lists(st.tuples(st.sampled_from([32, 48, 96]), st.integers(1, 9)), min_size=1, max_size=5))
    anatomy = anatomy_of([w for w, _ in layers], [c for _, c in layers])
    grid = LevelGrid.build(anatomy, num_levels=4, round_to=8)
    empty: list[Sample] = []
    encoding = encode(anatomy, grid, empty)
    remaining = data.draw(st.integers(grid.min_cost_from[0], grid.max_cost_from[0] + 50))
    for layer in range(grid.num_layers):
        expected = grid.feasible_levels(layer, remaining)
        mask = encoding.feasible(layer, torch.tensor([remaining]))[0]
        assert [k + 1 for k in range(4) if mask[k]] == expected
        remaining -= grid.costs[layer][data.draw(st.sampled_from(expected)) - 1]
    assert remaining >= 0
