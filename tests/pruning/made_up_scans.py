"""One-layer scans and limits made of numbers alone: bytes and operations grow evenly, latency climbs stairs."""

from dataclasses import dataclass

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.space import Space
from tests.pruning.made_up import made_up_anatomy
from tests.pruning.made_up_limits import is_tight

KINDS = (LimitKind.MEMORY_BYTES, LimitKind.LATENCY_MS, LimitKind.FLOPS)


@dataclass(frozen=True)
class MadeUpScan:
    """What the additive program is asked: `loss` [N, K] falls along the levels, to 0 where dense."""

    levels: Space
    loss: FloatArray
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
    levels = ffn_levels(anatomy, num_levels=num_levels)
    space = ffn_widths(anatomy, round_to=round_to).not_below(levels.units_of(levels.bottom))
    removed = 1 - np.array(levels.units) / np.array(dense)[:, None]
    loss = np.exp(rng.normal(0, 1.2, (len(dense), 1))) * removed ** rng.uniform(1, 3.5, (len(dense), 1))
    loss *= np.exp(noise * rng.normal(size=loss.shape))
    limits = []
    for kind in KINDS[:num_limits]:
        rows = []
        for row in space.units:
            if kind is LimitKind.LATENCY_MS:
                tile = int(rng.choice([16, 32, 64]))
                rows.append(-(-row // tile) * tile * int(rng.integers(500, 1500)))
            else:
                rows.append(row * int(rng.integers(50, 150)))
        least, most = (sum(int(row[at]) for row in rows) for at in (0, -1))
        limits.append(Limit(kind, int(least + (most - least) * rng.uniform(0.15, 0.85)), 0, tuple(rows)))
    return MadeUpScan(levels, loss, Limits(space, tuple(limits)))


def total_loss(limits: Limits, losses: FloatArray, choice: IntArray) -> float:
    """The sum of `losses` [N, K] at `choice` [N], which is within all limits, and tight."""
    assert is_tight(limits, choice)
    return float(losses[np.arange(len(losses)), choice].sum())
