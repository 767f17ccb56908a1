"""The solver of several limits against an integer program (HiGHS): never better, and near it."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.solver import least_within
from tests.pruning.made_up_limits import draw_choice, draw_worth, every_choice, limits_of, meets, ragged_limits
from tests.pruning.made_up_scans import total_loss

KINDS = (LimitKind.MEMORY_BYTES, LimitKind.LATENCY_MS, LimitKind.FLOPS)


def solved(limits: Limits, loss: FloatArray) -> float:
    """The sum that is found from the cheapest choice on; never worse than where it began."""
    start = limits.fit(limits.table.floor, -loss)
    found = total_loss(limits, loss, least_within(limits, loss, start, start[:, None]))
    assert found <= total_loss(limits, loss, start)
    return found


def optimum(limits: Limits, loss: FloatArray, *, gap: float = 1e-3) -> tuple[float, float]:
    """The least sum within `limits` up to `gap`, and a bound that none is below, by an integer program."""
    counts = limits.space.counts
    of_decision = np.repeat(np.arange(len(counts)), counts)
    exists = limits.table.exists
    result = milp(
        loss[exists],
        constraints=[
            LinearConstraint(of_decision == np.arange(len(counts))[:, None], 1, 1),
            LinearConstraint(limits.table.excess[:, exists] / np.maximum(limits.spare, 1)[:, None], -np.inf, 1),
        ],
        integrality=np.ones(len(of_decision)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": gap},
    )
    assert result.success
    return float(result.fun), float(result.mip_dual_bound)


def falling(rng: np.random.Generator, limits: Limits) -> FloatArray:
    """[N, K] losses that differ by much from decision to decision: an option above another one loses less.

    So what fills a choice up never costs loss, and the integer program need not be told of tightness.
    """
    table = limits.table
    share = np.where(table.exists, table.excess / np.maximum(table.most, 1)[:, :, None], 1.0).mean(axis=0)
    later = np.arange(share.shape[1]) / share.shape[1]
    scale, power = np.exp(rng.normal(0, 1.2, (len(share), 1))), rng.uniform(1, 3.5, (len(share), 1))
    loss: FloatArray = scale * (1 - share) ** power + 1e-3 * scale * (1 - later)
    return loss


def growing(rng: np.random.Generator, counts: list[int], kind: LimitKind) -> tuple[IntArray, ...]:
    """[N][K] costs that grow evenly, or latency in stairs."""
    rows = []
    for count in counts:
        tile = int(rng.choice([2, 4])) if kind is LimitKind.LATENCY_MS else 1
        rows.append(-(-np.arange(1, count + 1) // tile) * tile * rng.integers(500, 1500))
    return tuple(rows)


def uneven(rng: np.random.Generator, counts: list[int], kind: LimitKind) -> tuple[IntArray, ...]:
    """[N][K] costs without an order, as of widths times bits; the first is the floor."""
    rows = []
    for row in growing(rng, counts, kind):
        costs = row * rng.uniform(0.6, 1.4, len(row))
        costs[0] = costs.min()
        rows.append(costs.astype(np.int64))
    return tuple(rows)


def made_up(
    rng: np.random.Generator, counts: list[int], costs: Callable[..., tuple[IntArray, ...]], num_limits: int
) -> Limits:
    """Limits that leave between 20% and 80% of what is decided."""
    limits = []
    for kind in KINDS[:num_limits]:
        rows = costs(rng, counts, kind)
        least, most = (sum(int(of(row)) for row in rows) for of in (np.min, np.max))
        limits.append(Limit(kind, int(least + (most - least) * rng.uniform(0.2, 0.8)), 0, rows))
    return limits_of(*limits)


SIZES = {
    "64 decisions of 20 options": [20] * 64,
    "64 ragged decisions": [2, 3, 8, 20] * 16,
    "24 decisions of 12 options": [12] * 24,
    "6 decisions of 5 options": [5] * 6,
    "16 fine decisions": [400] * 16,
}


@pytest.mark.parametrize(("costs", "most"), [(growing, 0.01), (uneven, 0.02)])
@pytest.mark.parametrize("size", SIZES)
def test_near_the_optimum(size: str, costs: Callable[..., tuple[IntArray, ...]], most: float) -> None:
    rng, counts = np.random.default_rng(list(SIZES).index(size)), SIZES[size]
    gaps = []
    for num_limits in (2, 3):
        limits = made_up(rng, counts, costs, num_limits)
        loss = falling(rng, limits)
        best, bound = optimum(limits, loss)
        found = solved(limits, loss)
        assert found >= bound * (1 - 1e-9)
        gaps.append(found / best - 1)
    assert max(gaps) < most
    assert np.mean(gaps) < most / 2


@settings(max_examples=60, deadline=None)
@given(ragged_limits(max_decisions=4, max_options=4), st.data())
def test_never_worse_than_its_start_nor_better_than_the_best_tight_choice(limits: Limits, data: st.DataObject) -> None:
    # Of any sign and order: what fills a choice up may cost loss.
    loss = draw_worth(data, limits.space)
    start = limits.fit(draw_choice(data, limits.space), draw_worth(data, limits.space))
    found = total_loss(limits, loss, least_within(limits, loss, start, start[:, None]))
    tight = [total_loss(limits, loss, np.array(x)) for x in every_choice(limits) if limits.is_tight(x)]
    assert min(tight) - 1e-9 <= found <= total_loss(limits, loss, start)


@settings(max_examples=60, deadline=None)
@given(ragged_limits(max_decisions=4, max_options=4), st.integers(0, 2**32 - 1))
def test_few_options_are_solved_exactly(limits: Limits, seed: int) -> None:
    loss = falling(np.random.default_rng(seed), limits)
    least = min(sum(row[k] for row, k in zip(loss, x, strict=True)) for x in every_choice(limits) if meets(limits, x))
    assert solved(limits, loss) == pytest.approx(least, rel=1e-9)
