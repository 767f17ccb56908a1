"""The additive program under several limits: by hand, by trying all, against an integer program and random repairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from pruning.allocators.additive import additive_widths, interpolated_losses
from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.arrays import FloatArray
from pruning.errors import InfeasibleBudgetError
from pruning.planning.levels import LevelGrid
from pruning.planning.limits import Limit, LimitKind, Limits, WidthSteps
from tests.pruning.made_up_scans import MadeUpScan, made_up_scan, total_loss

# Layer 0 is dear and layer 1 cheap; memory counts channels, latency is the same up to 16 and dearer in layer 0.
WIDTHS = ((8, 16, 24, 32), (8, 16, 24, 32))
TABLE = np.array([[9.0, 6.0, 3.0, 0.0], [0.3, 0.2, 0.1, 0.0]])


def two_layers(memory: int, latency: int) -> MadeUpScan:
    rows = tuple(np.array(row, dtype=np.int64) for row in WIDTHS)
    stairs = tuple(np.array(row, dtype=np.int64) for row in ((2, 2, 6, 6), (1, 1, 4, 4)))
    limits = (Limit(LimitKind.MEMORY_BYTES, memory, 0, rows), Limit(LimitKind.LATENCY_MS, latency, 0, stairs))
    return MadeUpScan(LevelGrid(WIDTHS, WIDTHS, 8), TABLE, Limits(WidthSteps(rows), limits))


@pytest.mark.parametrize(
    ("memory", "latency", "expected"),
    [
        # Memory takes most and leaves (32, 24), which is too slow: layer 1 gives, not the dear layer, which is dense.
        (56, 9, [32, 16]),
        (48, 10, [32, 16]),
        # All of memory, but not two layers beyond the stair.
        (64, 9, [32, 16]),
        (64, 10, [32, 32]),
        # Layer 0 cannot go beyond the stair; then it has all up to it, and layer 1 the rest.
        (64, 6, [16, 32]),
        (40, 5, [16, 16]),
    ],
)
def test_by_hand(memory: int, latency: int, expected: list[int]) -> None:
    scan = two_layers(memory, latency)
    assert additive_widths(scan.grid, scan.table, scan.limits) == expected


def test_losses_between_levels_are_linear() -> None:
    grid = LevelGrid(((8, 32), (8, 16)), ((8, 32), (8, 16)), 8)
    steps = WidthSteps((np.array([8, 16, 24, 32]), np.array([8, 16])))
    losses = interpolated_losses(grid, np.array([[3.0, 0.0], [1.0, 0.5]]), steps)
    assert losses.tolist() == [[3.0, 2.0, 1.0, 0.0], [1.0, 0.5, 0.0, 0.0]]


def test_a_limit_that_nothing_meets_is_named() -> None:
    scan = two_layers(64, 2)
    with pytest.raises(InfeasibleBudgetError, match=r"latency_ms = 0\.001"):
        additive_widths(scan.grid, scan.table, scan.limits)


def test_a_table_of_zeros() -> None:
    scan = two_layers(48, 6)
    assert total_loss(scan, np.zeros((2, 4)), additive_widths(scan.grid, np.zeros((2, 4)), scan.limits)) == 0


def best_by_trying(scan: MadeUpScan, losses: FloatArray) -> float:
    counts = [range(len(row)) for row in scan.limits.steps.widths]
    layers = np.arange(len(counts))
    every = np.array(list(itertools.product(*counts)))
    costs = scan.limits.table[:, layers, every].sum(axis=2)  # [J, number of choices]
    fitting = every[(costs <= scan.limits.room[:, None]).all(axis=0)]
    return float(losses[layers, fitting].sum(axis=1).min())


@st.composite
def scans(draw: st.DrawFn, *, most_layers: int, widest: int, noisy: bool = False) -> MadeUpScan:
    dense = draw(st.lists(st.sampled_from(range(24, widest + 1, 2)), min_size=1, max_size=most_layers))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return made_up_scan(
        rng,
        dense,
        num_levels=draw(st.integers(2, 3)),
        round_to=draw(st.sampled_from([8, 16])),
        num_limits=draw(st.integers(2, 3)),
        noise=0.5 if noisy else 0.0,
    )


@settings(max_examples=150, deadline=None)
@given(scans(most_layers=4, widest=64))
def test_few_layers_of_few_widths_are_solved_exactly(scan: MadeUpScan) -> None:
    losses = interpolated_losses(scan.grid, scan.table, scan.limits.steps)
    found = total_loss(scan, losses, additive_widths(scan.grid, scan.table, scan.limits))
    assert found == pytest.approx(best_by_trying(scan, losses), rel=1e-9, abs=1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scans(most_layers=8, widest=96), st.integers(0, 2**32 - 1))
def test_never_worse_than_random_repairs(scan: MadeUpScan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = interpolated_losses(scan.grid, scan.table, scan.limits.steps)
    found = total_loss(scan, losses, additive_widths(scan.grid, scan.table, scan.limits))
    for worth in (None, rng.normal(size=len(losses)), rng.random(losses.shape).cumsum(axis=1), -losses, -losses):
        start = rng.integers(0, 100, len(losses)).tolist()
        assert found <= total_loss(scan, losses, scan.limits.repair(start, worth)) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(scans(most_layers=8, widest=96, noisy=True))
def test_noisy_tables_keep_to_the_limits_and_use_them_up(scan: MadeUpScan) -> None:
    losses = interpolated_losses(scan.grid, scan.table, scan.limits.steps)
    found = total_loss(scan, losses, additive_widths(scan.grid, scan.table, scan.limits))
    # Never worse than the optimum under one of the limits, repaired.
    assert found <= total_loss(scan, losses, repaired(scan, -losses)) * (1 + 1e-9)


def repaired(scan: MadeUpScan, worth: FloatArray | list[float] | None) -> list[int]:
    """The optimum on the levels under the limit that takes most, filled up and repaired by `worth`.

    By default, a channel is worth the slope of the table to the next level up, and nothing in a dense layer.
    """
    binding, steps = scan.limits.binding, scan.limits.steps
    allowed = [steps.at_most(list(level)) for level in zip(*scan.grid.widths, strict=True)]
    costs = tuple(tuple(int(row[at[i]]) for at in allowed) for i, row in enumerate(binding.costs))
    grid = LevelGrid(scan.grid.widths, costs, scan.grid.round_to)
    budget = min(binding.most, binding.dense) - binding.fixed
    levels = fill_up(grid, additive_dp(grid, scan.table, budget)[0], budget, scan.table)
    if worth is None:
        worth = [
            float(row[k - 1] - row[k]) / (widths[k] - widths[k - 1]) if k < grid.num_levels else 0.0
            for k, row, widths in zip(levels, scan.table, grid.widths, strict=True)
        ]
    return scan.limits.repair(grid.widths_of(levels), worth)


def optimum(scan: MadeUpScan, losses: FloatArray) -> float:
    """The least sum of `losses` [L, N] within the limits, by an integer program."""
    counts = [len(row) for row in scan.limits.steps.widths]
    of_layer = np.repeat(np.arange(len(counts)), counts)
    costs = np.stack([np.concatenate(limit.costs) for limit in scan.limits.limits]) / scan.limits.room[:, None]
    result = milp(
        np.concatenate([row[:count] for row, count in zip(losses, counts, strict=True)]),
        constraints=[
            LinearConstraint(of_layer == np.arange(len(counts))[:, None], 1, 1),
            LinearConstraint(costs, -np.inf, 1),
        ],
        integrality=np.ones(len(of_layer)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6},
    )
    assert result.success
    return float(result.fun)


def test_near_the_optimum_of_an_integer_program() -> None:
    rng = np.random.default_rng(0)
    gaps, before = [], []
    for _ in range(12):
        dense = rng.choice([128, 256], 12).tolist()
        scan = made_up_scan(rng, dense, num_levels=8, num_limits=int(rng.integers(2, 4)))
        losses = interpolated_losses(scan.grid, scan.table, scan.limits.steps)
        best = optimum(scan, losses)
        gaps.append(total_loss(scan, losses, additive_widths(scan.grid, scan.table, scan.limits)) / best - 1)
        before.append(total_loss(scan, losses, repaired(scan, None)) / best - 1)
    assert max(gaps) < 0.02
    assert np.mean(gaps) < 0.002
    # Worth nothing where dense, as it was: that these numbers tell the two apart.
    assert np.mean(before) > 0.05


def test_near_the_optimum_at_the_size_of_a_real_model() -> None:
    """30 layers of 1,536 channels: far more allowed widths than are tried at once."""
    rng = np.random.default_rng(1)
    for _ in range(2):
        scan = made_up_scan(rng, [1536] * 30, num_levels=5, num_limits=2)
        assert sum(len(row) for row in scan.limits.steps.widths) > 2000
        losses = interpolated_losses(scan.grid, scan.table, scan.limits.steps)
        found = total_loss(scan, losses, additive_widths(scan.grid, scan.table, scan.limits))
        assert found / optimum(scan, losses) - 1 < 0.02


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 8, 16, 24, 48]), st.sampled_from([0.0, 0.5]))
def test_one_limit_is_filled_up_by_the_slope_to_the_next_level(seed: int, round_to: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.choice([64, 66, 128, 256], int(rng.integers(1, 8))).tolist()
    scan = made_up_scan(rng, dense, num_levels=4, round_to=round_to, num_limits=2, noise=noise)
    for limit in scan.limits.limits:
        alone = MadeUpScan(scan.grid, scan.table, Limits(scan.limits.steps, (limit,)))
        assert additive_widths(alone.grid, alone.table, alone.limits) == repaired(alone, None)


# Written down before several limits were solved together.
GOLDEN = [
    (0, [48, 66, 96, 200, 48]),
    (1, [64, 66, 128, 120, 96]),
    (2, [64, 66, 128, 157, 96]),
    (3, [64, 16, 128, 64, 64]),
    (4, [64, 24, 128, 192, 24]),
    (5, [32, 32, 96, 256, 80]),
]


@pytest.mark.parametrize(("seed", "expected"), GOLDEN)
def test_plans_under_one_limit_are_as_they_were(seed: int, expected: list[int]) -> None:
    rng = np.random.default_rng(seed)
    scan = made_up_scan(
        rng, [64, 66, 128, 256, 96], num_levels=4, round_to=[8, 24, 1][seed % 3], noise=0.3 * (seed % 2)
    )
    limits = Limits(scan.limits.steps, (scan.limits.limits[seed % 2],))
    assert additive_widths(scan.grid, scan.table, limits) == expected
