"""One-layer scans and limits made of numbers alone: bytes and operations grow evenly, latency climbs stairs."""

from dataclasses import dataclass

import numpy as np

from pruning.arrays import FloatArray
from pruning.planning.levels import LevelGrid
from pruning.planning.limits import Limit, LimitKind, Limits, WidthSteps
from tests.pruning.made_up import made_up_anatomy

KINDS = (LimitKind.MEMORY_BYTES, LimitKind.LATENCY_MS, LimitKind.FLOPS)


@dataclass(frozen=True)
class MadeUpScan:
    """What the additive program is asked: `table` [L, K] falls along the levels of `grid`, to 0 where dense."""

    grid: LevelGrid
    table: FloatArray
    limits: Limits


def made_up_scan(
    rng: np.random.Generator,
    dense: list[int],
    *,
    num_levels: int,
    round_to: int = 8,
    num_limits: int = 2,
    noise: float = 0.0,
) -> MadeUpScan:
    """Layers of `dense` channels whose losses differ by much, and limits that leave between 15% and 85%.

    With `noise`, in log loss, the table is no longer monotone.
    """
    anatomy = made_up_anatomy(dense)
    grid = LevelGrid.build(anatomy, num_levels=num_levels)
    steps = WidthSteps.build(anatomy, round_to=round_to).not_below([row[0] for row in grid.widths])
    removed = 1 - np.array(grid.widths) / np.array(dense)[:, None]
    table = np.exp(rng.normal(0, 1.2, (len(dense), 1))) * removed ** rng.uniform(1, 3.5, (len(dense), 1))
    table *= np.exp(noise * rng.normal(size=table.shape))
    limits = []
    for kind in KINDS[:num_limits]:
        rows = []
        for row in steps.widths:
            if kind is LimitKind.LATENCY_MS:
                tile = int(rng.choice([16, 32, 64]))
                rows.append(-(-row // tile) * tile * int(rng.integers(500, 1500)))
            else:
                rows.append(row * int(rng.integers(50, 150)))
        least, most = (sum(int(row[at]) for row in rows) for at in (0, -1))
        limits.append(Limit(kind, int(least + (most - least) * rng.uniform(0.15, 0.85)), 0, tuple(rows)))
    return MadeUpScan(grid, table, Limits(steps, tuple(limits)))


def total_loss(scan: MadeUpScan, losses: FloatArray, widths: list[int]) -> float:
    """The sum of `losses` [L, N] at `widths` [L], which are allowed, within all limits, and full."""
    indices = scan.limits.steps.at_most(widths)
    assert scan.limits.steps.of(indices) == widths
    assert (scan.limits.slack(indices) >= 0).all()
    for layer, row in enumerate(scan.limits.steps.widths):
        if indices[layer] + 1 < len(row):
            wider = indices.copy()
            wider[layer] += 1
            assert (scan.limits.slack(wider) < 0).any()
    return float(losses[np.arange(len(losses)), indices].sum())
