"""Samples as training examples: what is refused, what does not matter, and the frontier."""

import dataclasses
from typing import Any

import pytest
import torch

from policy_model.dataset import check_samples, frontier, held_out, samples_sha256, training_data
from policy_model.encoding import encode
from pruning.anatomy import ModelAnatomy
from pruning.errors import InputError
from pruning.levels import LevelGrid
from storage.records import Sample
from tests.policy_model.landscape import sample


def test_too_few_samples_name_the_command_that_adds_some(anatomy: ModelAnatomy, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match=r"at least 64 samples.*got 40 samples.*lop search"):
        check_samples(anatomy, samples[-40:])


def test_scans_alone_are_too_few(anatomy: ModelAnatomy) -> None:
    scans = [sample(anatomy, [64] * i + [w] + [64] * (5 - i)) for i in range(6) for w in range(8, 64, 4)]
    with pytest.raises(InputError, match="84 samples, 0 of them prune two layers or more"):
        check_samples(anatomy, scans)


@pytest.mark.parametrize("field", ["model_id", "ranking_sha256", "calibration_id"])
def test_mixed_conditions_are_refused(anatomy: ModelAnatomy, samples: list[Sample], field: str) -> None:
    changed: dict[str, Any] = {field: "other"}
    other = dataclasses.replace(samples[0], **changed)
    with pytest.raises(InputError, match=f"share one {field}"):
        check_samples(anatomy, [*samples, other])


@pytest.mark.parametrize("widths", [(64,) * 5, (0, 64, 64, 64, 64, 64), (65, 64, 64, 64, 64, 64)])
def test_foreign_widths_are_refused(anatomy: ModelAnatomy, samples: list[Sample], widths: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="widths must lie between"):
        check_samples(anatomy, [*samples, dataclasses.replace(samples[0], widths=widths)])


@pytest.mark.parametrize("kl", [float("nan"), float("inf"), -0.1])
def test_impossible_kl_is_refused(anatomy: ModelAnatomy, samples: list[Sample], kl: float) -> None:
    with pytest.raises(InputError, match="KL must be a finite number"):
        check_samples(anatomy, [*samples, sample(anatomy, [8, 8, 8, 8, 8, 8], kl)])


def test_order_and_repetition_do_not_matter(anatomy: ModelAnatomy, samples: list[Sample]) -> None:
    once = check_samples(anatomy, samples)
    again = check_samples(anatomy, [*reversed(samples), *samples[:5]])
    assert [s.widths for s in once] == [s.widths for s in again]
    assert samples_sha256(once) == samples_sha256(list(reversed(again)))
    assert samples_sha256(once) != samples_sha256(once[1:])


def test_frontier_by_hand() -> None:
    retention, values = torch.tensor([0.4, 0.5]), torch.tensor([-1.0, -3.0])
    at = torch.tensor([0.4, 0.47, 0.5, 0.9, 0.2])
    # 0.47 is one bandwidth below 0.5; 0.2 is 6.67 and 10 bandwidths below.
    expected = torch.tensor([-1.0, -2.0, -3.0, -3.0, -1.0 + (0.2 / 0.03) ** 2])
    torch.testing.assert_close(frontier(retention, values, at), expected, rtol=1e-4, atol=1e-4)


def test_tensors_of_samples(anatomy: ModelAnatomy, grid: LevelGrid, samples: list[Sample]) -> None:
    chosen = [sample(anatomy, [64] * 6, 0.0), sample(anatomy, [16, 64, 64, 64, 64, 32]), sample(anatomy, [20] * 6)]
    data = training_data(grid, encode(anatomy, grid, samples), chosen)
    assert data.levels.tolist() == [[3] * 6, [0, 3, 3, 3, 3, 1], [-1] * 6]
    assert data.on_grid.tolist() == [True, True, False]
    assert data.searched.tolist() == [False, True, True]
    torch.testing.assert_close(data.retention, torch.tensor([1.0, 304 / 384, 120 / 384]))
    assert (data.gap >= 0.0).all()
    assert data.imitation_weights(0.1)[2] == 0.0


def test_held_out_parts(anatomy: ModelAnatomy, grid: LevelGrid, samples: list[Sample]) -> None:
    data = training_data(grid, encode(anatomy, grid, samples), samples)
    mask = held_out(data, 4, 2, seed=0)
    N = len(samples)
    assert all(N // 8 <= int(row.sum()) <= N // 8 + 1 for row in mask[:4])
    assert int(mask[:4].sum(dim=0).max()) == 1  # disjoint
    for probe in mask[4:]:
        inside = data.retention[probe]
        assert 0 < len(inside) < N // 2
        assert inside.max() - inside.min() <= 0.0601
        assert data.searched[probe].all()
    assert torch.equal(mask, held_out(data, 4, 2, seed=0))
